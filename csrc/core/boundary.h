// What the two sides of a boundary hold.
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

// Both sides of a boundary. `host_of` is the host of each rank; empty where hosts do not matter.
struct Boundary {
  std::vector<UseRun> uses;
  std::vector<HolderRun> producers;
  std::vector<HolderRun> consumers;
  std::vector<std::int64_t> host_of;
};

// The same boundary with its uses ascending by use position and its holders by (start, rank), found sound.
//
// Throws std::invalid_argument naming the argument, the rank and the rows: a number that is negative or too
// large, a use position in two runs, a use that nobody produces, a rank that holds a row twice or two
// rows in one place, a consumer row that is in no use run.
Boundary sorted_and_checked(Boundary boundary);

}  // namespace hetsched
