#include "core/placement.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>

#include "bind/bind.h"
#include "bind/read_program.h"
#include "core/admission.h"
#include "core/precedence.h"

namespace hetsched {
namespace {

namespace py = pybind11;

using Times = py::array_t<std::int64_t, py::array::c_style>;

std::vector<Time> to_vector(const Times& array) { return {array.data(), array.data() + array.size()}; }

// A program without transfers, to place encoders in.
struct Bare {
  Program program;
};

std::unique_ptr<Bare> read_bare(const py::tuple& lanes, std::int32_t num_microbatches, const py::list& modules,
                                const py::list& edges, const py::tuple& kinds, const py::dict& names,
                                std::vector<std::pair<std::int32_t, std::int32_t>> waits) {
  auto bare = std::make_unique<Bare>(Bare{read_program(lanes, num_microbatches, modules, edges, kinds, names)});
  bare->program.waits = std::move(waits);
  return bare;
}

py::tuple place(const Bare& bare, const Times& durations, const EncoderWork& work, std::int32_t budget) {
  const std::vector<Time> times = to_vector(durations);
  Placement found;
  {
    const py::gil_scoped_release release;
    found = place_encoder(bare.program, times, work, budget);
  }
  py::list actions;
  for (const PlacedAction& a : found.actions) {
    actions.append(py::make_tuple(a.lane, a.position, a.is_forward, a.microbatch, a.first_item, a.num_items));
  }
  return py::make_tuple(actions, found.recomputed, found.makespan, found.lower_bound, found.num_evaluations);
}

EncoderWork make_work(std::int32_t edge, std::vector<std::int32_t> lanes, std::vector<std::int32_t> item_begin,
                      std::pair<std::vector<Time>, std::vector<Time>> costs, bool has_backward,
                      std::pair<std::int32_t, bool> state) {
  return {edge, std::move(lanes), std::move(item_begin), std::move(costs.first), std::move(costs.second),
          has_backward, state.first, state.second};
}

}  // namespace

void bind_placement(py::module_& module) {
  py::class_<EncoderWork>(module, "EncoderWork")
      .def(py::init(&make_work), py::arg("edge"), py::arg("lanes"), py::arg("item_begin"), py::arg("costs"),
           py::arg("has_backward"), py::arg("state"));
  py::class_<Bare>(module, "BareProgram")
      .def(py::init(&read_bare), py::arg("lanes"), py::arg("num_microbatches"), py::arg("modules"), py::arg("edges"),
           py::arg("kinds"), py::arg("names"), py::arg("waits"))
      .def("place_encoder", &place, py::arg("durations"), py::arg("work"), py::arg("budget"))
      .def("order",
           [](const Bare& bare, std::int32_t edge) { return find_precedence(bare.program, edge).order; },
           py::arg("edge"))
      .def("earliest_starts",
           [](const Bare& bare, const Times& durations, std::int32_t edge) {
             return earliest_starts(find_precedence(bare.program, edge), to_vector(durations));
           },
           py::arg("durations"), py::arg("edge"))
      .def(
          "limit_in_flight",
          [](const Bare& bare, const Times& durations, std::int32_t edge, std::int32_t in_flight,
             Time latency) {
            return limit_in_flight(bare.program, to_vector(durations), edge, in_flight, latency);
          },
          py::arg("durations"), py::arg("edge"), py::arg("in_flight"), py::arg("latency"));
}

}  // namespace hetsched
