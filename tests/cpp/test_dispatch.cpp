#include <stdexcept>

#include "check.h"
#include "core/dispatch.h"

using namespace hetsched;
using Ints = std::vector<std::int64_t>;

namespace {

bool is_run(const HolderRun& run, std::int64_t rank, std::int64_t row, std::int64_t start, std::int64_t num_rows) {
  return run.rank == rank && run.row == row && run.start == start && run.num_rows == num_rows;
}

}  // namespace

TEST(level_documents_stay_whole_though_they_might_be_cut) {
  const auto runs = plan_tokens({0, 4, 8}, {2, 1}, 1, {1, 0});
  CHECK(runs.size() == 2);
  CHECK(is_run(runs[0], 0, 0, 0, 4) && is_run(runs[1], 1, 0, 4, 4));
}

TEST(one_long_document_is_cut_zigzag) {
  const auto runs = plan_tokens({0, 8}, {2, 1}, 1, {1, 0});
  CHECK(runs.size() == 3);
  CHECK(is_run(runs[0], 0, 0, 0, 2) && is_run(runs[1], 0, 2, 6, 2));
  CHECK(is_run(runs[2], 1, 0, 2, 4));
}

TEST(a_long_document_is_cut_unequally_beside_a_short_one) {
  // Rank 0 has 8 whole tokens and gets 56 of the long one's 120, rank 1 the other 64.
  const auto runs = plan_tokens({0, 8, 128}, {2, 1}, 100, {1, 0});
  std::int64_t held = 0;
  for (const HolderRun& run : runs) held += run.rank == 0 ? run.num_rows : 0;
  CHECK(held == 64);
  CHECK(runs[0].rank == 0 && runs[0].start == 0 && runs[0].num_rows > 8);
}

TEST(no_document_below_the_shortest_cut_is_cut) {
  const auto runs = plan_tokens({0, 8}, {2, 1}, 9, {1, 0});
  CHECK(runs.size() == 1 && is_run(runs[0], 0, 0, 0, 8));
}

TEST(sequence_parallel_ranks_split_what_a_rank_has) {
  const auto runs = plan_tokens({0, 3, 6}, {2, 2}, 100, {1, 1});
  CHECK(runs.size() == 4);
  CHECK(is_run(runs[0], 0, 0, 0, 1) && is_run(runs[1], 1, 0, 1, 2));
  CHECK(is_run(runs[2], 2, 0, 3, 1) && is_run(runs[3], 3, 0, 4, 2));
}

TEST(nothing_is_held_of_nothing) { CHECK(plan_tokens({0, 0}, {3, 1}, 1, {1, 1}).empty()); }

TEST(what_would_not_fit_64_bits_throws) {
  CHECK_THROWS(std::invalid_argument, plan_tokens({0, std::int64_t{1} << 31}, {2, 1}, 1, {1, 1}));
  CHECK_THROWS(std::invalid_argument, plan_tokens({0, 1 << 20}, {2, 1}, 1, {std::int64_t{1} << 40, 1}));
  CHECK_THROWS(std::invalid_argument, plan_tokens({0, 1}, {2, 1}, 1, {-1, 1}));
}
