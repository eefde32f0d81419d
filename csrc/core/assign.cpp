#include "core/assign.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace hetsched {

std::vector<std::int64_t> assign_longest_first(const std::vector<std::int64_t>& costs,
                                               std::vector<std::int64_t> loads) {
  if (loads.empty()) throw std::invalid_argument("num_bins: expected at least 1, got 0");
  for (std::size_t job = 0; job < costs.size(); ++job) {
    if (costs[job] < 0) {
      throw std::invalid_argument("costs[" + std::to_string(job) + "]: expected at least 0, got " +
                                  std::to_string(costs[job]));
    }
  }
  std::vector<std::size_t> order(costs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });

  using Bin = std::pair<std::int64_t, std::int64_t>;  // load, index
  std::priority_queue<Bin, std::vector<Bin>, std::greater<>> lightest;
  for (std::size_t bin = 0; bin < loads.size(); ++bin) lightest.emplace(loads[bin], static_cast<std::int64_t>(bin));

  std::vector<std::int64_t> bins(costs.size());
  for (std::size_t job : order) {
    const auto [load, bin] = lightest.top();
    lightest.pop();
    bins[job] = bin;
    lightest.emplace(load + costs[job], bin);
  }
  return bins;
}

}  // namespace hetsched
