#include <stdexcept>

#include "check.h"
#include "core/assign.h"

using hetsched::assign_longest_first;
using Ints = std::vector<std::int64_t>;

TEST(longest_job_goes_first_into_the_lightest_bin) {
  CHECK(assign_longest_first({1, 5, 3, 3}, {0, 0}) == Ints{0, 0, 1, 1});
}

TEST(ties_go_to_the_smaller_index) { CHECK(assign_longest_first({2, 2, 2}, {0, 0, 0}) == Ints{0, 1, 2}); }

TEST(initial_loads_count) { CHECK(assign_longest_first({2, 1}, {3, 0}) == Ints{1, 1}); }

TEST(no_jobs_give_no_bins) { CHECK(assign_longest_first({}, {0}).empty()); }

TEST(no_bins_or_a_negative_cost_throw) {
  CHECK_THROWS(std::invalid_argument, assign_longest_first({1}, {}));
  CHECK_THROWS(std::invalid_argument, assign_longest_first({1, -1}, {0}));
}
