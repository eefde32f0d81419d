// Who copies which rows to whom over a boundary, by interval intersection.
//
// Two axes: produced rows, and use positions, which a list of use runs maps to produced rows. Both sides
// may hold any runs, on any ranks, any number of times.
#pragma once

#include <cstdint>
#include <vector>

namespace hetsched {

// Use positions use_start .. use_start + num_rows - 1 are filled by the produced rows from produced_start.
struct UseRun {
  std::int64_t use_start;
  std::int64_t produced_start;
  std::int64_t num_rows;
};

// A rank keeps rows start .. start + num_rows - 1 of its side's axis in its local rows from `row`.
struct HolderRun {
  std::int64_t rank;
  std::int64_t row;
  std::int64_t start;
  std::int64_t num_rows;
};

// A run of rows copied from one rank to another.
struct Segment {
  std::int64_t src_rank;
  std::int64_t src_row;
  std::int64_t dst_rank;
  std::int64_t dst_row;
  std::int64_t num_rows;
};

// Both sides of a boundary. `host_of` is the host of each rank; empty where hosts do not matter.
struct Boundary {
  std::vector<UseRun> uses;
  std::vector<HolderRun> producers;
  std::vector<HolderRun> consumers;
  std::vector<std::int64_t> host_of;
};

// Every row of a consumer from one producer: itself, otherwise one on its host, otherwise any; among several
// the one with the fewest rows sent so far, ties to the smaller rank. Throws std::invalid_argument for a
// boundary that is not sound.
std::vector<Segment> forward_route(const Boundary& boundary);

// The adjoint: every row of a producer from the consumers of each of its uses, from one holder by the
// same rule, or with `partial` from all. The segments that reach one row stand in the list by (use
// position, source rank), which is the order of the sum and the same on every replica.
std::vector<Segment> backward_route(const Boundary& boundary, bool partial);

}  // namespace hetsched
