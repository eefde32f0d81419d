#include "core/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bind/bind.h"
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

Program program_of(std::int32_t num_microbatches, const py::list& modules, const py::list& edges) {
  Program program{0, num_microbatches, {}, {}, {}, {0}, {0}};
  for (const py::handle& item : modules) {
    const auto module = item.cast<std::tuple<std::vector<std::vector<Lanes>>, bool, bool>>();
    program.modules.push_back({std::get<0>(module), std::get<1>(module), std::get<2>(module)});
  }
  for (const py::handle& item : edges) {
    const auto edge = item.cast<std::tuple<std::int32_t, std::int32_t, std::int32_t>>();
    program.edges.push_back({std::get<0>(edge), std::get<1>(edge), std::get<2>(edge)});
  }
  return program;
}

// Reads hetsched.schedule.action.Action, attribute by attribute: the fastest way in from Python.
class ActionReader {
 public:
  ActionReader(const py::tuple& kinds, const py::dict& names) : names_(names) {
    for (const py::handle& kind : kinds) kinds_.push_back(kind.ptr());
  }

  // Appends the parts of the action. Throws std::invalid_argument if it makes no sense in this topology.
  void read(const py::handle& action, std::vector<Part>& parts) const {
    const py::object fused = action.attr(parts_name_);
    if (py::len(fused) == 0) {
      parts.push_back(part_of(action));
      return;
    }
    for (const py::handle& part : fused) parts.push_back(part_of(part));
    const bool is_pair = py::len(fused) == 2 && parts[parts.size() - 2].kind == Kind::F && parts.back().kind == Kind::B;
    if (!is_pair || is_known(action.attr(kind_name_))) {
      refuse(action, "OVERLAP_F_B takes a forward and a full backward, in that order");
    }
  }

 private:
  Part part_of(const py::handle& action) const {
    const py::object kind = action.attr(kind_name_);
    if (!is_known(kind)) refuse(action, "OVERLAP_F_B takes a forward and a full backward, in that order");
    const auto code = std::find(kinds_.begin(), kinds_.end(), kind.ptr()) - kinds_.begin();
    const py::object module = action.attr(module_name_);
    PyObject* const number = PyDict_GetItemWithError(names_.ptr(), module.ptr());
    if (number == nullptr) refuse(action, "the topology has no " + module.cast<std::string>());
    const py::object first = action.attr(first_name_), last = action.attr(last_name_);
    const bool is_window = !first.is_none() && !last.is_none();
    return {static_cast<Kind>(code), py::handle(number).cast<std::int32_t>(),
            action.attr(stage_name_).cast<std::int32_t>(), is_window ? first.cast<std::int32_t>() : 0,
            is_window ? last.cast<std::int32_t>() : -1};
  }

  bool is_known(const py::object& kind) const {
    return std::find(kinds_.begin(), kinds_.end(), kind.ptr()) != kinds_.end();
  }

  [[noreturn]] static void refuse(const py::handle& action, const std::string& reason) {
    throw std::invalid_argument(py::str(action).cast<std::string>() + ": " + reason);
  }

  const py::dict& names_;
  std::vector<PyObject*> kinds_;
  const py::str parts_name_ = "parts", kind_name_ = "kind", module_name_ = "module", stage_name_ = "stage",
                first_name_ = "first", last_name_ = "last";
};

// The wired program, or the fault as a tuple: kind, lane, action, other lane, other action, wanted part or None.
py::object compile(const py::tuple& lanes, std::int32_t num_microbatches, const py::list& modules,
                   const py::list& edges, const py::tuple& kinds, const py::dict& names) {
  Program program = program_of(num_microbatches, modules, edges);
  const ActionReader reader(kinds, names);
  for (const py::handle& lane : lanes) {
    for (const py::handle& action : lane) {
      reader.read(action, program.parts);
      program.part_begin.push_back(static_cast<std::int32_t>(program.parts.size()));
    }
    program.lane_begin.push_back(program.num_actions());
  }
  program.num_lanes = static_cast<std::int32_t>(lanes.size());
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
