#include "core/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bind/bind.h"
#include "bind/read_program.h"
#include "core/lower_bound.h"
#include "core/soundness.h"

namespace hetsched {
namespace {

namespace py = pybind11;

using Times = py::array_t<std::int64_t, py::array::c_style>;

template <typename T>
std::vector<T> to_vector(const py::array_t<T, py::array::c_style>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

// A checked and wired program, to be run any number of times.
struct Compiled {
  explicit Compiled(Program given) : program(std::move(given)), sites(program) {
    check_complete(program, sites);
    check_order_on_lanes(program, sites);
    check_parameters(program, sites);
    wiring = wire(program, sites);
  }
  Compiled(const Compiled&) = delete;  // sites refers to program

  const Program program;
  const Sites sites;
  Wiring wiring;
};

// The wired program, or the fault as a tuple: kind, lane, action, other lane, other action, wanted part or None.
py::object compile(const py::tuple& lanes, std::int32_t num_microbatches, const py::list& modules,
                   const py::list& edges, const py::tuple& kinds, const py::dict& names) {
  Program program = read_program(lanes, num_microbatches, modules, edges, kinds, names);
  try {
    return py::cast(std::make_unique<Compiled>(std::move(program)));
  } catch (const Fault& fault) {
    py::object wanted = py::none();
    if (fault.wanted) {
      const Part& part = *fault.wanted;
      wanted = py::make_tuple(static_cast<std::int32_t>(part.kind), part.name, part.stage, part.first, part.last);
    }
    return py::make_tuple(static_cast<std::int32_t>(fault.kind), fault.lane, fault.action, fault.other_lane,
                          fault.other_action, wanted);
  }
}

Run run_compiled(const Compiled& compiled, const Times& durations, const Times& message_times, const Times& slots,
                 bool is_rendezvous) {
  const Costs costs{to_vector(durations), to_vector(message_times), to_vector(slots), is_rendezvous};
  const py::gil_scoped_release release;
  return run(compiled.wiring, costs, compiled.program.num_names(), compiled.program.num_microbatches);
}

// Durations from a table [kind or pair, stage site] of times, negative where none is stated. The row after the kinds is
// that of fused pairs, by their forward; without it they cost the sum of their parts. A transfer costs nothing.
Times durations_of(const Compiled& compiled, const Times& table) {
  const Program& program = compiled.program;
  const py::ssize_t num_sites = compiled.sites.num_stage_sites();
  const auto stated = [&](std::int32_t row, const Part& part) {
    return table.data()[row * num_sites + compiled.sites.site_of(part)];
  };
  const auto cost = [&](const Part& part) {
    if (is_transfer(part.kind)) return Time{0};
    return stated(static_cast<std::int32_t>(part.kind), part) * std::max(1, part.last - part.first + 1);
  };
  Times result(program.num_actions());
  for (std::int32_t action = 0; action < program.num_actions(); ++action) {
    const Part* const part = &program.parts[program.part_begin[action]];
    Time& time = result.mutable_data()[action];
    if (program.part_begin[action + 1] - program.part_begin[action] == 1) {
      time = cost(part[0]);
    } else {
      const Time pair = stated(kNumKinds, part[0]);
      const Time forward = cost(part[0]), backward = cost(part[1]);
      const Time sum = std::min(forward, backward) < 0 ? -1 : forward + backward;
      time = pair >= 0 ? pair * (part->last - part->first + 1) : sum;
    }
  }
  return result;
}

Time lower_bound_of(const Compiled& compiled, const Times& durations, const Times& message_times) {
  const Costs costs{to_vector(durations), to_vector(message_times), {}, false};
  const py::gil_scoped_release release;
  return lower_bound(compiled.program, compiled.sites, compiled.wiring, costs);
}

// (source, destination, SEND action, RECV action) of each message.
py::list messages_of(const Compiled& compiled) {
  py::list result;
  for (const Message& message : compiled.wiring.messages) {
    const Channel& channel = compiled.wiring.channels[message.channel];
    result.append(py::make_tuple(channel.source, channel.destination, message.send, message.receive));
  }
  return result;
}

py::list waits_of(const Run& run) {
  py::list result;
  for (const Wait& wait : run.waits) {
    result.append(py::make_tuple(wait.lane, wait.action, wait.for_lane, wait.for_action));
  }
  return result;
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Run>(module, "Run")
      .def_readonly("start", &Run::start)
      .def_readonly("end", &Run::end)
      .def_readonly("message_start", &Run::message_start)
      .def_readonly("message_end", &Run::message_end)
      .def_readonly("max_in_flight", &Run::max_in_flight)
      .def_readonly("stopped_at", &Run::stopped_at)
      .def_readonly("makespan", &Run::makespan)
      .def_property_readonly("waits", &waits_of);
  py::class_<Compiled>(module, "CompiledProgram")
      .def_property_readonly("messages", &messages_of)
      .def("run", &run_compiled, py::arg("durations"), py::arg("message_times"), py::arg("slots"),
           py::arg("is_rendezvous"))
      .def("durations", &durations_of, py::arg("table"))
      .def("lower_bound", &lower_bound_of, py::arg("durations"), py::arg("message_times"));
  module.def("compile_program", &compile, py::arg("lanes"), py::arg("num_microbatches"), py::arg("modules"),
             py::arg("edges"), py::arg("kinds"), py::arg("names"));
}

}  // namespace hetsched
