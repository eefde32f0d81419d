#include "bind/read_program.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

namespace hetsched {
namespace {

namespace py = pybind11;

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

}  // namespace

Program read_program(const py::tuple& lanes, std::int32_t num_microbatches, const py::list& modules,
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
  return program;
}

}  // namespace hetsched
