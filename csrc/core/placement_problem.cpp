#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/placement_pass.h"

namespace hetsched {
namespace {

// The least time in which all of a microbatch's items are done on `num_lanes` lanes.
Time least(const std::vector<Time>& costs, std::int32_t begin, std::int32_t end, std::size_t num_lanes) {
  Time sum = 0, largest = 0;
  for (std::int32_t item = begin; item < end; ++item) {
    sum += costs[item];
    largest = std::max(largest, costs[item]);
  }
  const auto divisor = static_cast<Time>(num_lanes);
  return std::max(largest, (sum + divisor - 1) / divisor);
}

void check(const Program& program, const std::vector<Time>& durations, const EncoderWork& work) {
  const bool fits = durations.size() == static_cast<std::size_t>(program.num_actions()) &&
                    work.item_begin.size() == static_cast<std::size_t>(program.num_microbatches) + 1 &&
                    work.item_begin.back() == static_cast<std::int32_t>(work.forward.size()) &&
                    work.forward.size() == work.backward.size() && !work.lanes.empty() && work.lanes.front() >= 0 &&
                    work.lanes.back() < program.num_lanes;
  if (!fits) throw std::invalid_argument("the encoder's work does not fit the program");
}

}  // namespace

PlacementProblem::PlacementProblem(const Program& program, std::vector<Time> given, const EncoderWork& encoder)
    : work(encoder), precedence(find_precedence(program, encoder.edge)), durations(std::move(given)) {
  check(program, durations, work);
  const Precedence& p = precedence;
  is_encoder_lane.assign(p.num_lanes(), 0);
  for (const std::int32_t lane : work.lanes) is_encoder_lane[lane] = 1;
  std::vector<Time> shortest_backward(num_microbatches(), 0);
  for (std::int32_t m = 0; m < num_microbatches() && work.has_backward; ++m) {
    shortest_backward[m] = least(work.backward, work.item_begin[m], work.item_begin[m + 1], work.lanes.size());
  }
  give_actions.resize(num_microbatches());
  for (std::int32_t action = 0; action < p.num_actions(); ++action) {
    if (p.gives[action] >= 0) give_actions[p.gives[action]].push_back(action);
  }
  tail.assign(p.num_actions(), 0);
  left.assign(p.num_actions(), 0);
  gate_tail.assign(num_microbatches(), 0);
  give_tail.assign(num_microbatches(), kNever);
  for (auto action = p.order.rbegin(); action != p.order.rend(); ++action) {
    const std::int32_t a = *action;
    Time after = p.gives[a] >= 0 ? shortest_backward[p.gives[a]] : 0;
    if (a + 1 < p.lane_begin[p.lane_of[a] + 1]) {
      after = std::max(after, tail[a + 1]);
      left[a] = left[a + 1];
    }
    for (std::int32_t n = p.next_begin[a]; n < p.next_begin[a + 1]; ++n) after = std::max(after, tail[p.next[n]]);
    tail[a] = durations[a] + after;
    left[a] += durations[a];
    if (p.gate[a] >= 0) gate_tail[p.gate[a]] = std::max(gate_tail[p.gate[a]], tail[a]);
    if (p.gives[a] >= 0) give_tail[p.gives[a]] = std::min(give_tail[p.gives[a]], after);
    lower_bound = std::max(lower_bound, tail[a]);
  }
  Time total = 0;
  for (std::int32_t m = 0; m < num_microbatches(); ++m) {
    if (num_items(m) == 0) continue;
    order.push_back(m);
    const Time shortest = least(work.forward, work.item_begin[m], work.item_begin[m + 1], work.lanes.size());
    lower_bound = std::max(lower_bound, shortest + gate_tail[m]);
    for (std::int32_t i = work.item_begin[m]; i < work.item_begin[m + 1]; ++i) {
      total += work.forward[i] + (work.has_backward ? work.backward[i] : 0);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [this](std::int32_t a, std::int32_t b) { return gate_tail[a] > gate_tail[b]; });
  for (const std::int32_t lane : work.lanes) {
    if (p.lane_begin[lane] < p.lane_begin[lane + 1]) total += left[p.lane_begin[lane]];
  }
  const auto num_lanes = static_cast<Time>(work.lanes.size());
  lower_bound = std::max(lower_bound, (total + num_lanes - 1) / num_lanes);
}

}  // namespace hetsched
