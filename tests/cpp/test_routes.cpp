#include <stdexcept>
#include <tuple>

#include "check.h"
#include "core/routes.h"

using namespace hetsched;

namespace hetsched {

static bool operator==(const Segment& a, const Segment& b) {
  return std::tie(a.src_rank, a.src_row, a.dst_rank, a.dst_row, a.num_rows) ==
         std::tie(b.src_rank, b.src_row, b.dst_rank, b.dst_row, b.num_rows);
}

}  // namespace hetsched

using Route = std::vector<Segment>;

TEST(a_shard_goes_to_the_ranks_that_keep_its_rows) {
  // Ranks 0 and 1 produce a half each; ranks 2, 3 keep the outer and the inner quarters (zigzag).
  const Boundary boundary{
      {{0, 0, 8}}, {{0, 0, 0, 4}, {1, 0, 4, 4}}, {{2, 0, 0, 2}, {2, 2, 6, 2}, {3, 0, 2, 4}}, {}};
  CHECK(forward_route(boundary) == Route{{0, 0, 2, 0, 2}, {1, 2, 2, 2, 2}, {0, 2, 3, 0, 2}, {1, 0, 3, 2, 2}});
  CHECK(backward_route(boundary, false) == Route{{2, 0, 0, 0, 2}, {3, 0, 0, 2, 2}, {3, 2, 1, 0, 2}, {2, 2, 1, 2, 2}});
}

TEST(a_row_stays_where_it_is_and_replicas_share_the_sending) {
  const Boundary boundary{
      {{0, 0, 4}}, {{0, 0, 0, 4}, {1, 0, 0, 4}}, {{1, 0, 0, 4}, {2, 0, 0, 4}, {3, 0, 0, 4}}, {}};
  CHECK(forward_route(boundary) == Route{{1, 0, 1, 0, 4}, {0, 0, 2, 0, 4}, {1, 0, 3, 0, 4}});
}

TEST(a_replica_on_the_same_host_is_nearer) {
  const Boundary boundary{{{0, 0, 4}}, {{0, 0, 0, 4}, {2, 0, 0, 4}}, {{1, 0, 0, 4}, {3, 0, 0, 4}}, {1, 0, 0, 0}};
  CHECK(forward_route(boundary) == Route{{2, 0, 1, 0, 4}, {2, 0, 3, 0, 4}});
}

TEST(an_item_used_twice_returns_the_sum_of_both_uses_in_their_order) {
  const Boundary boundary{{{10, 0, 3}, {5, 0, 3}}, {{0, 0, 0, 3}}, {{1, 0, 10, 3}, {2, 0, 5, 3}}, {}};
  CHECK(forward_route(boundary) == Route{{0, 0, 1, 0, 3}, {0, 0, 2, 0, 3}});
  CHECK(backward_route(boundary, false) == Route{{2, 0, 0, 0, 3}, {1, 0, 0, 0, 3}});
}

TEST(partial_gradients_come_from_every_holder) {
  const Boundary boundary{{{0, 0, 2}}, {{0, 0, 0, 2}}, {{1, 0, 0, 2}, {0, 7, 0, 2}}, {}};
  CHECK(backward_route(boundary, true) == Route{{0, 7, 0, 0, 2}, {1, 0, 0, 0, 2}});
  CHECK(backward_route(boundary, false) == Route{{0, 7, 0, 0, 2}});
}

TEST(nothing_to_move_is_an_empty_route) {
  CHECK(forward_route({}).empty());
  CHECK(backward_route({{{0, 0, 0}}, {{0, 0, 0, 0}}, {{1, 0, 0, 0}}, {}}, true).empty());
}

TEST(an_unsound_boundary_throws) {
  const Boundary sound{{{0, 0, 4}}, {{0, 0, 0, 4}}, {{1, 0, 0, 4}}, {}};
  CHECK(forward_route(sound).size() == 1);
  Boundary broken = sound;
  broken.producers[0].num_rows = 3;
  CHECK_THROWS(std::invalid_argument, forward_route(broken));
  CHECK_THROWS(std::invalid_argument, backward_route(broken, false));
  broken = sound;
  broken.consumers.push_back({2, 0, 3, 2});
  CHECK_THROWS(std::invalid_argument, forward_route(broken));
}
