// An axis of rows cut into cells, so that the runs at a position can be looked up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/sorting.h"

namespace hetsched {

// Rows start .. start + num_rows - 1 of an axis.
struct Span {
  std::int64_t start;
  std::int64_t num_rows;

  std::int64_t end() const { return start + num_rows; }
};

// The axis cut at the start and the end of every span: between two cuts the same spans are present.
class Cells {
 public:
  // `spans` are ascending by start and may overlap; empty ones are in no cell. Time and memory grow with the number of
  // (cell, span) pairs.
  explicit Cells(const std::vector<Span>& spans);

  struct Members {
    const std::size_t* first;
    const std::size_t* last;

    const std::size_t* begin() const { return first; }
    const std::size_t* end() const { return last; }
    bool empty() const { return first == last; }
  };

  // The spans of a cell, as indices.
  Members members(std::size_t cell) const {
    return {members_.data() + offsets_[cell], members_.data() + offsets_[cell + 1]};
  }

  // Puts the members of every cell in the order of `less`, which compares indices of spans.
  template <typename Less>
  void order_members(Less less) {
    for (std::size_t cell = 0; cell + 1 < offsets_.size(); ++cell) {
      sort_unless_sorted(members_.begin() + static_cast<std::ptrdiff_t>(offsets_[cell]),
                         members_.begin() + static_cast<std::ptrdiff_t>(offsets_[cell + 1]), less);
    }
  }

  // Calls visit(cell, piece) for the pieces that the cells cut a span into, ascending. Parts of the span outside all
  // cells are left out.
  template <typename Visit>
  void for_each_piece(Span span, Visit visit) const {
    for (std::size_t cell = cell_at(span.start); cell + 1 < cuts_.size() && cuts_[cell] < span.end(); ++cell) {
      const std::int64_t start = std::max(cuts_[cell], span.start);
      const std::int64_t end = std::min(cuts_[cell + 1], span.end());
      if (start < end) visit(cell, Span{start, end - start});
    }
  }

 private:
  // The cell that holds a position; the first cell for positions before it.
  std::size_t cell_at(std::int64_t position) const;

  std::vector<std::int64_t> cuts_;    // ascending; cell c is cuts_[c] .. cuts_[c + 1] - 1
  std::vector<std::size_t> offsets_;  // members of cell c are members_[offsets_[c]] .. members_[offsets_[c + 1] - 1]
  std::vector<std::size_t> members_;
};

}  // namespace hetsched
