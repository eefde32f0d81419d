// What a boundary must fulfil before routes are made of it.
#pragma once

#include "core/routes.h"

namespace hetsched {

// Throws std::invalid_argument naming the argument, the rank and the rows: a number that is negative or too large, a use position
// in two runs, a use that nobody produces, a rank that holds a row twice or two rows in one place, a
// consumer row that is not a use.
void check_boundary(const Boundary& boundary);

}  // namespace hetsched
