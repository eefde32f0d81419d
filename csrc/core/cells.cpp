#include "core/cells.h"

#include <algorithm>

namespace hetsched {

Cells::Cells(const std::vector<Span>& spans) {
  cuts_.reserve(2 * spans.size());
  for (const Span& span : spans) {
    if (span.num_rows == 0) continue;
    cuts_.push_back(span.start);
    cuts_.push_back(span.end());
  }
  std::sort(cuts_.begin(), cuts_.end());
  cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());

  // Count per cell, then fill.
  const std::size_t num_cells = cuts_.empty() ? 0 : cuts_.size() - 1;
  offsets_.assign(num_cells + 1, 0);
  for (const Span& span : spans) {
    for_each_piece(span, [&](std::size_t cell, Span) { ++offsets_[cell + 1]; });
  }
  for (std::size_t cell = 0; cell < num_cells; ++cell) offsets_[cell + 1] += offsets_[cell];
  members_.resize(offsets_[num_cells]);
  std::vector<std::size_t> next(offsets_.begin(), offsets_.end());
  for (std::size_t index = 0; index < spans.size(); ++index) {
    for_each_piece(spans[index], [&](std::size_t cell, Span) { members_[next[cell]++] = index; });
  }
}

std::size_t Cells::cell_at(std::int64_t position) const {
  const auto after = std::upper_bound(cuts_.begin(), cuts_.end(), position);
  return after == cuts_.begin() ? 0 : static_cast<std::size_t>(after - cuts_.begin()) - 1;
}

}  // namespace hetsched
