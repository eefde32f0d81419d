// Who copies which rows to whom over a boundary, by interval intersection.
#pragma once

#include <cstdint>
#include <vector>

#include "core/boundary.h"

namespace hetsched {

// A run of rows copied from one rank to another.
struct Segment {
  std::int64_t src_rank;
  std::int64_t src_row;
  std::int64_t dst_rank;
  std::int64_t dst_row;
  std::int64_t num_rows;
};

// Every row of a consumer from one producer: itself, otherwise one on its host, otherwise any; among several
// the one with the fewest rows sent so far, ties to the smaller rank. Throws std::invalid_argument for a
// boundary that is not sound.
std::vector<Segment> forward_route(Boundary boundary);

// The adjoint: every row of a producer from the consumers of each of its uses, from one holder by the
// same rule, or with `partial` from all. The segments that reach one row stand in the list by (use
// position, source rank), which is the order of the sum and the same on every replica.
std::vector<Segment> backward_route(Boundary boundary, bool partial);

}  // namespace hetsched
