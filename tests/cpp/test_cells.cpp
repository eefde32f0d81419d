#include <utility>

#include "check.h"
#include "core/cells.h"

using hetsched::Cells;
using hetsched::Span;

namespace {

struct Found {
  std::int64_t start, num_rows;
  std::vector<std::size_t> members;

  bool operator==(const Found& other) const {
    return start == other.start && num_rows == other.num_rows && members == other.members;
  }
};

std::vector<Found> pieces(const Cells& cells, Span span) {
  std::vector<Found> found;
  cells.for_each_piece(span, [&](std::size_t cell, Span piece) {
    const auto members = cells.members(cell);
    found.push_back({piece.start, piece.num_rows, {members.begin(), members.end()}});
  });
  return found;
}

}  // namespace

TEST(a_cell_holds_the_spans_that_cover_it_in_their_order) {
  const Cells cells({{0, 4}, {2, 6}, {4, 4}});
  CHECK(pieces(cells, {0, 8}) == std::vector<Found>{{0, 2, {0}}, {2, 2, {0, 1}}, {4, 4, {1, 2}}});
}

TEST(members_can_be_put_in_another_order) {
  Cells cells({{0, 4}, {2, 6}});
  cells.order_members([](std::size_t a, std::size_t b) { return a > b; });
  CHECK(pieces(cells, {2, 1}) == std::vector<Found>{{2, 1, {1, 0}}});
}

TEST(a_span_is_cut_to_its_own_rows) {
  const Cells cells({{0, 10}, {5, 5}});
  CHECK(pieces(cells, {3, 4}) == std::vector<Found>{{3, 2, {0}}, {5, 2, {0, 1}}});
}

TEST(a_gap_is_a_cell_without_members_and_the_outside_is_left_out) {
  const Cells cells({{2, 1}, {5, 1}});
  CHECK(pieces(cells, {0, 9}) == std::vector<Found>{{2, 1, {0}}, {3, 2, {}}, {5, 1, {1}}});
}

TEST(empty_spans_are_nowhere) {
  CHECK(pieces(Cells({{3, 0}}), {0, 9}).empty());
  CHECK(pieces(Cells({}), {0, 9}).empty());
  CHECK(pieces(Cells({{0, 9}}), {4, 0}).empty());
}
