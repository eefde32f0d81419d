#include <stdexcept>
#include <string>

#include "check.h"
#include "core/boundary.h"

using namespace hetsched;

namespace {

const Boundary kSound{{{0, 0, 4}, {4, 0, 4}}, {{0, 0, 0, 4}}, {{1, 0, 0, 4}, {2, 0, 4, 4}}, {}};

// The message of the fault, or an empty string.
std::string fault(const Boundary& boundary) {
  try {
    sorted_and_checked(boundary);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

template <typename Change>
std::string fault_after(Change change) {
  Boundary boundary = kSound;
  change(boundary);
  return fault(boundary);
}

}  // namespace

TEST(a_sound_boundary_has_no_fault_and_is_sorted) {
  CHECK(fault(kSound).empty());
  Boundary reversed = kSound;
  std::swap(reversed.uses[0], reversed.uses[1]);
  std::swap(reversed.consumers[0], reversed.consumers[1]);
  const Boundary sorted = sorted_and_checked(reversed);
  CHECK(sorted.uses[0].use_start == 0);
  CHECK(sorted.consumers[0].rank == 1);
}

TEST(a_number_out_of_range_is_named) {
  CHECK(fault_after([](Boundary& b) { b.consumers[1].row = -1; }).find("consumers[1].row: ") == 0);
  CHECK(fault_after([](Boundary& b) { b.uses[1].num_rows = INT64_MAX; }).find("uses[1].num_rows: ") == 0);
  CHECK(fault_after([](Boundary& b) { b.host_of = {0, 0}; }) == "consumers[1].rank: expected 0 to 1, got 2");
}

TEST(overlaps_are_named) {
  CHECK(fault_after([](Boundary& b) { b.uses[1].use_start = 2; }) == "uses: use positions 2..3 are in two runs");
  CHECK(fault_after([](Boundary& b) { b.producers.push_back({0, 9, 3, 2}); }) ==
        "producers: rank 0 holds produced rows 3..3 twice");
  CHECK(fault_after([](Boundary& b) { b.consumers.push_back({1, 3, 4, 2}); }) ==
        "consumers: rank 1 keeps two runs in its local rows 3..3");
}

TEST(rows_without_a_counterpart_are_named) {
  CHECK(fault_after([](Boundary& b) { b.producers[0].num_rows = 3; }) ==
        "uses: produced rows 3..3 are used, but no producer holds them");
  CHECK(fault_after([](Boundary& b) { b.producers = {{0, 0, 0, 1}, {0, 1, 3, 1}}; }) ==
        "uses: produced rows 1..2 are used, but no producer holds them");
  CHECK(fault_after([](Boundary& b) { b.consumers[1].num_rows = 6; }) ==
        "consumers: rank 2 holds use positions 8..9, which are in no use run");
}

TEST(empty_runs_are_sound_anywhere) {
  CHECK(fault_after([](Boundary& b) {
          b.uses.push_back({2, 99, 0});
          b.producers.push_back({0, 2, 2, 0});
          b.consumers.push_back({1, 1, 77, 0});
        }).empty());
}
