#include "core/cells.h"

#include <functional>
#include <iterator>

namespace hetsched {
namespace {

std::vector<std::int64_t> cuts_of(const std::vector<Span>& spans) {
  std::vector<std::int64_t> starts, ends, cuts;
  starts.reserve(spans.size());
  ends.reserve(spans.size());
  for (const Span& span : spans) {
    if (span.num_rows == 0) continue;
    starts.push_back(span.start);
    ends.push_back(span.end());
  }
  sort_unless_sorted(ends.begin(), ends.end(), std::less<>());
  cuts.reserve(2 * starts.size());
  std::merge(starts.begin(), starts.end(), ends.begin(), ends.end(), std::back_inserter(cuts));
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

}  // namespace

Cells::Cells(const std::vector<Span>& spans) : cuts_(cuts_of(spans)) {
  const std::size_t num_cells = cuts_.empty() ? 0 : cuts_.size() - 1;
  // Calls visit(index, cell) for every span and the cells that it covers.
  const auto for_each_pair = [&](auto visit) {
    std::size_t first = 0;
    for (std::size_t index = 0; index < spans.size(); ++index) {
      while (first < num_cells && cuts_[first] < spans[index].start) ++first;
      for (std::size_t cell = first; cell < num_cells && cuts_[cell] < spans[index].end(); ++cell) visit(index, cell);
    }
  };
  offsets_.assign(num_cells + 1, 0);
  for_each_pair([&](std::size_t, std::size_t cell) { ++offsets_[cell + 1]; });
  for (std::size_t cell = 0; cell < num_cells; ++cell) offsets_[cell + 1] += offsets_[cell];
  members_.resize(offsets_[num_cells]);
  std::vector<std::size_t> next = offsets_;
  for_each_pair([&](std::size_t index, std::size_t cell) { members_[next[cell]++] = index; });
}

std::size_t Cells::cell_at(std::int64_t position) const {
  const auto after = std::upper_bound(cuts_.begin(), cuts_.end(), position);
  return after == cuts_.begin() ? 0 : static_cast<std::size_t>(after - cuts_.begin()) - 1;
}

}  // namespace hetsched
