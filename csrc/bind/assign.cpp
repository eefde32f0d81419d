#include "core/assign.h"

#include <pybind11/stl.h>

#include "bind/bind.h"

namespace hetsched {

void bind_assign(pybind11::module_& module) {
  namespace py = pybind11;
  module.def("assign_longest_first", &assign_longest_first, py::arg("costs"), py::arg("loads"),
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace hetsched
