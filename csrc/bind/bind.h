// One function per topic puts its part of the core into the module `hetsched._core`.
#pragma once

#include <pybind11/pybind11.h>

namespace hetsched {

void bind_assign(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_packing(pybind11::module_& module);
void bind_routes(pybind11::module_& module);

}  // namespace hetsched
