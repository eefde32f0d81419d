// A hetsched.schedule.program.Program as flat integers.
#pragma once

#include <pybind11/pybind11.h>

#include "core/program.h"

namespace hetsched {

// `kinds` in the order of core/program.h, `names` the numbers of modules and edges. Throws std::invalid_argument for
// an action that makes no sense in this topology.
Program read_program(const pybind11::tuple& lanes, std::int32_t num_microbatches, const pybind11::list& modules,
                     const pybind11::list& edges, const pybind11::tuple& kinds, const pybind11::dict& names);

}  // namespace hetsched
