#include <stdexcept>

#include "check.h"
#include "core/packing.h"
#include "core/tokens.h"

using namespace hetsched;
using Ints = std::vector<std::int64_t>;

TEST(the_longest_sample_goes_first_into_the_fullest_sequence_with_room) {
  CHECK(pack_best_fit({2, 7, 5, 3, 1}, 10) == Ints{1, 0, 1, 0, 1});
}

TEST(an_exact_fit_beats_an_emptier_sequence) { CHECK(pack_best_fit({6, 8, 2}, 10) == Ints{1, 0, 0}); }

TEST(equal_rooms_go_to_the_smaller_sequence) { CHECK(pack_best_fit({6, 6, 4, 4}, 10) == Ints{0, 1, 0, 1}); }

TEST(empty_samples_take_no_room) { CHECK(pack_best_fit({0, 10, 0}, 10) == Ints{0, 0, 0}); }

TEST(in_order_a_sequence_is_a_run_of_samples) { CHECK(pack_in_order({4, 4, 4, 9, 1, 1}, 10) == Ints{0, 0, 1, 2, 2, 3}); }

TEST(a_length_above_the_capacity_or_below_zero_throws) {
  CHECK_THROWS(std::invalid_argument, pack_best_fit({11}, 10));
  CHECK_THROWS(std::invalid_argument, pack_in_order({-1}, 10));
}

namespace {

bool is_run(const HolderRun& run, std::int64_t rank, std::int64_t row, std::int64_t start, std::int64_t num_rows) {
  return run.rank == rank && run.row == row && run.start == start && run.num_rows == num_rows;
}

}  // namespace

TEST(zigzag_gives_a_rank_one_early_and_one_late_piece) {
  const auto runs = spread_zigzag(9, {2, 1});  // Pieces [0, 2), [2, 4), [4, 6), [6, 9).
  CHECK(runs.size() == 3);
  CHECK(is_run(runs[0], 0, 0, 0, 2) && is_run(runs[1], 0, 2, 6, 3));
  CHECK(is_run(runs[2], 1, 0, 2, 4));
}

TEST(sequence_parallel_ranks_split_the_rows_of_a_rank) {
  const auto runs = spread_zigzag(9, {1, 2});
  CHECK(runs.size() == 2);
  CHECK(is_run(runs[0], 0, 0, 0, 4) && is_run(runs[1], 1, 0, 4, 5));
}
