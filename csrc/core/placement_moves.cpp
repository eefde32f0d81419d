#include "core/placement_moves.h"

#include <algorithm>
#include <utility>

namespace hetsched {

MovablePlacement::MovablePlacement(const PlacementProblem& problem, const Candidate& start)
    : problem_(problem),
      num_actions_(problem.precedence.num_actions()),
      is_recomputed_(problem.num_microbatches(), 0) {
  const Precedence& graph = problem.precedence;
  for (const std::int32_t m : start.recomputed) is_recomputed_[m] = 1;
  forward_rank_.resize(problem.num_microbatches());
  backward_rank_.resize(problem.num_microbatches());
  for (std::size_t i = 0; i < problem.order.size(); ++i) forward_rank_[problem.order[i]] = static_cast<std::int32_t>(i);
  for (std::size_t i = 0; i < graph.order.size(); ++i) {
    const std::int32_t m = graph.gives[graph.order[i]];
    if (m >= 0) backward_rank_[m] = static_cast<std::int32_t>(i);
  }
  now_.lanes.resize(graph.num_lanes());
  now_.shares_of.resize(problem.num_microbatches());
  now_.durations = problem.durations;
  // Shares of a microbatch are handed out in the order of their items.
  std::vector<PlacedAction> forwards;
  for (const PlacedAction& action : start.actions) {
    if (action.is_forward) forwards.push_back(action);
  }
  std::sort(forwards.begin(), forwards.end(), [](const PlacedAction& a, const PlacedAction& b) {
    return std::make_pair(a.microbatch, a.first_item) < std::make_pair(b.microbatch, b.first_item);
  });
  for (const PlacedAction& a : forwards) {
    now_.shares_of[a.microbatch].push_back(static_cast<std::int32_t>(now_.shares.size()));
    now_.shares.push_back({a.microbatch, a.lane, a.num_items});
  }
  std::vector<std::int32_t> taken = graph.lane_begin;
  const auto take_until = [&](std::int32_t lane, std::int32_t end) {
    for (; taken[lane] < end; ++taken[lane]) now_.lanes[lane].push_back(taken[lane]);
  };
  for (const PlacedAction& a : start.actions) {
    take_until(a.lane, graph.lane_begin[a.lane] + a.position);
    const auto& shares = now_.shares_of[a.microbatch];
    const std::int32_t share = *std::find_if(shares.begin(), shares.end(), [&](std::int32_t s) {
      return now_.shares[s].lane == a.lane;
    });
    now_.lanes[a.lane].push_back(a.is_forward ? forward_of(share) : backward_of(share));
  }
  for (std::int32_t lane = 0; lane < graph.num_lanes(); ++lane) take_until(lane, graph.lane_begin[lane + 1]);
  now_.durations.resize(num_actions_ + 2 * now_.shares.size());
  for (const std::int32_t m : problem.order) set_durations(m);
  time();
  keep();
}

bool MovablePlacement::change(Random& random) {
  const std::int32_t which = random.below(problem_.work.has_backward ? 8 : 4);
  const bool is_split = problem_.order.size() < problem_.work.forward.size();
  if (is_split && which % 2 == 0) return move_items(random);
  return which < 4 ? move_whole(random) : move_backward(random);
}

void MovablePlacement::set_durations(std::int32_t m) {
  const EncoderWork& work = problem_.work;
  std::int32_t item = work.item_begin[m];
  for (const std::int32_t share : now_.shares_of[m]) {
    Time forward = 0, backward = 0;
    for (const std::int32_t end = item + now_.shares[share].count; item < end; ++item) {
      forward += work.forward[item];
      backward += work.backward[item] + (is_recomputed_[m] ? work.forward[item] : 0);
    }
    now_.durations[forward_of(share)] = forward;
    now_.durations[backward_of(share)] = backward;
  }
}

std::int32_t MovablePlacement::random_share(Random& random) const {
  for (;;) {
    const std::int32_t share = random.below(static_cast<std::int32_t>(now_.shares.size()));
    if (now_.shares[share].count > 0) return share;
  }
}

// A share goes elsewhere, on its lane or to one that has none of the microbatch.
bool MovablePlacement::move_whole(Random& random) {
  const std::int32_t share = random_share(random);
  Share& moved = now_.shares[share];
  const std::int32_t lane = random.below(2) == 0 ? -1 : free_lane(moved.microbatch, random);
  take_out(moved.lane, forward_of(share));
  if (lane >= 0) {
    if (problem_.work.has_backward) take_out(moved.lane, backward_of(share));
    moved.lane = lane;
    if (problem_.work.has_backward) put_backward(share, random);
  }
  put_forward(share, random);
  return true;
}

bool MovablePlacement::move_backward(Random& random) {
  const std::int32_t share = random_share(random);
  take_out(now_.shares[share].lane, backward_of(share));
  put_backward(share, random);
  return true;
}

// Some items of a share go to the next share, or to a lane that has none.
bool MovablePlacement::move_items(Random& random) {
  const std::int32_t from = random_share(random);
  const std::int32_t m = now_.shares[from].microbatch;
  std::vector<std::int32_t>& of_microbatch = now_.shares_of[m];
  const auto place = std::find(of_microbatch.begin(), of_microbatch.end(), from) - of_microbatch.begin();
  const std::int32_t count = 1 + random.below(now_.shares[from].count);
  const auto num_shares = static_cast<std::int32_t>(of_microbatch.size());
  const std::int32_t lane = free_lane(m, random);
  std::int32_t to = -1;
  if (num_shares > 1 && (lane < 0 || random.below(2) == 0)) {
    const bool is_left = place > 0 && (place + 1 == num_shares || random.below(2) == 0);
    to = of_microbatch[is_left ? place - 1 : place + 1];
  } else if (lane >= 0) {
    to = new_share(m, lane);
    of_microbatch.insert(of_microbatch.begin() + place + 1, to);
    put_forward(to, random);
    if (problem_.work.has_backward) put_backward(to, random);
  } else {
    return false;
  }
  now_.shares[from].count -= count;
  now_.shares[to].count += count;
  if (now_.shares[from].count == 0) {
    take_out(now_.shares[from].lane, forward_of(from));
    if (problem_.work.has_backward) take_out(now_.shares[from].lane, backward_of(from));
    of_microbatch.erase(std::find(of_microbatch.begin(), of_microbatch.end(), from));
  }
  set_durations(m);
  return true;
}

// A share without items yet, in the place of one that has lost all of its.
std::int32_t MovablePlacement::new_share(std::int32_t m, std::int32_t lane) {
  const auto unused = std::find_if(now_.shares.begin(), now_.shares.end(), [](const Share& s) { return s.count == 0; });
  const auto share = static_cast<std::int32_t>(unused - now_.shares.begin());
  if (unused == now_.shares.end()) {
    now_.shares.emplace_back();
    now_.durations.resize(now_.durations.size() + 2);
  }
  now_.shares[share] = {m, lane, 0};
  return share;
}

// A lane without a share of the microbatch, or -1.
std::int32_t MovablePlacement::free_lane(std::int32_t m, Random& random) const {
  const auto& lanes = problem_.work.lanes;
  const std::int32_t lane = lanes[random.below(static_cast<std::int32_t>(lanes.size()))];
  for (const std::int32_t share : now_.shares_of[m]) {
    if (now_.shares[share].lane == lane) return -1;
  }
  return lane;
}

void MovablePlacement::take_out(std::int32_t lane, std::int32_t node) {
  std::vector<std::int32_t>& nodes = now_.lanes[lane];
  nodes.erase(std::find(nodes.begin(), nodes.end(), node));
}

void MovablePlacement::put_forward(std::int32_t share, Random& random) {
  const Precedence& graph = problem_.precedence;
  const std::int32_t m = now_.shares[share].microbatch;
  Time needed = kNever;
  for (std::int32_t i = graph.gate_begin[m]; i < graph.gate_begin[m + 1]; ++i) {
    needed = std::min(needed, kept_start_[graph.gate_actions[i]]);
  }
  put_between(forward_of(share), now_.shares[share].lane, 0, needed, random);
}

void MovablePlacement::put_backward(std::int32_t share, Random& random) {
  Time released = 0;
  for (const std::int32_t action : problem_.give_actions[now_.shares[share].microbatch]) {
    released = std::max(released, kept_end_[action]);
  }
  put_between(backward_of(share), now_.shares[share].lane, released, kNever, random);
}

// Before some action that started between two times, or after all of them. Messages of a channel keep their order, so
// that forwards stay in the order in which the program needs them, and backwards in that of their gradients.
void MovablePlacement::put_between(std::int32_t node, std::int32_t lane, Time from, Time to, Random& random) {
  std::vector<std::int32_t>& nodes = now_.lanes[lane];
  const auto num_timed = static_cast<std::int32_t>(kept_start_.size());
  const auto num_nodes = static_cast<std::int32_t>(nodes.size());
  std::int32_t first = 0, last = num_nodes, earliest = 0, latest = num_nodes;
  for (std::int32_t i = 0; i < num_nodes; ++i) {
    const std::int32_t other = nodes[i];
    if (other >= num_actions_ && (other - node) % 2 == 0) {
      if (rank(other) < rank(node)) {
        earliest = i + 1;
      } else {
        latest = std::min(latest, i);
      }
    }
    if (other >= num_timed) continue;
    if (kept_start_[other] < from) first = i + 1;
    if (kept_start_[other] >= to) last = std::min(last, i);
  }
  first = std::min(std::max(first, earliest), latest);
  last = std::max(std::min(last, latest), first);
  nodes.insert(nodes.begin() + first + random.below(last - first + 1), node);
}

// A share's forward's place among all forwards, or its backward's among all backwards.
std::int32_t MovablePlacement::rank(std::int32_t node) const {
  const std::int32_t m = now_.shares[(node - num_actions_) / 2].microbatch;
  return ((node - num_actions_) % 2 == 0 ? forward_rank_ : backward_rank_)[m];
}

bool MovablePlacement::time() {
  const Precedence& graph = problem_.precedence;
  const auto num_nodes = now_.durations.size();
  const std::int32_t num_lanes = graph.num_lanes();
  missing_ = graph.num_needed;
  missing_.resize(num_nodes, 0);
  start_.assign(num_nodes, 0);
  end_.assign(num_nodes, 0);
  ready_.assign(num_nodes, 0);
  lane_of_ = graph.lane_of;
  lane_of_.resize(num_nodes, 0);
  for (std::size_t share = 0; share < now_.shares.size(); ++share) {
    const auto s = static_cast<std::int32_t>(share);
    const Share& it = now_.shares[share];
    lane_of_[forward_of(s)] = lane_of_[backward_of(s)] = it.lane;
    if (it.count == 0) continue;
    missing_[backward_of(s)] = 1 + graph.num_gives[it.microbatch];
    for (std::int32_t i = graph.gate_begin[it.microbatch]; i < graph.gate_begin[it.microbatch + 1]; ++i) {
      ++missing_[graph.gate_actions[i]];
    }
  }
  free_.assign(num_lanes, 0);
  next_on_lane_.assign(num_lanes, 0);
  todo_.clear();
  for (std::int32_t lane = 0; lane < num_lanes; ++lane) todo_.push_back(lane);
  std::size_t num_left = 0;
  for (const auto& nodes : now_.lanes) num_left += nodes.size();
  while (!todo_.empty()) {
    const std::int32_t lane = todo_.back();
    todo_.pop_back();
    std::int32_t& next = next_on_lane_[lane];
    const std::vector<std::int32_t>& nodes = now_.lanes[lane];
    while (next < static_cast<std::int32_t>(nodes.size()) && missing_[nodes[next]] == 0) {
      const std::int32_t node = nodes[next++];
      --num_left;
      start_[node] = std::max(free_[lane], ready_[node]);
      const Time end = free_[lane] = end_[node] = start_[node] + now_.durations[node];
      if (node < num_actions_) {
        for (std::int32_t n = graph.next_begin[node]; n < graph.next_begin[node + 1]; ++n) settle(graph.next[n], end);
        if (graph.gives[node] < 0 || !problem_.work.has_backward) continue;
        for (const std::int32_t share : now_.shares_of[graph.gives[node]]) settle(backward_of(share), end);
      } else if ((node - num_actions_) % 2 == 0) {
        const std::int32_t m = now_.shares[(node - num_actions_) / 2].microbatch;
        for (std::int32_t i = graph.gate_begin[m]; i < graph.gate_begin[m + 1]; ++i) {
          settle(graph.gate_actions[i], end);
        }
        if (problem_.work.has_backward) settle(node + 1, end);
      }
    }
  }
  if (num_left > 0 || holds_too_much()) return false;
  makespan_ = *std::max_element(free_.begin(), free_.end());
  return true;
}

void MovablePlacement::settle(std::int32_t node, Time time) {
  ready_[node] = std::max(ready_[node], time);
  if (--missing_[node] > 0) return;
  const std::int32_t lane = lane_of_[node];
  const auto& nodes = now_.lanes[lane];
  if (next_on_lane_[lane] < static_cast<std::int32_t>(nodes.size()) && nodes[next_on_lane_[lane]] == node) {
    todo_.push_back(lane);
  }
}

bool MovablePlacement::holds_too_much() const {
  const EncoderWork& work = problem_.work;
  if (work.in_flight == 0 || !work.has_backward) return false;
  std::vector<std::pair<Time, std::int32_t>> changes;  // what ends at a time makes room for what starts then
  for (const std::int32_t m : problem_.order) {
    if (is_recomputed_[m]) continue;
    Time first = kNever, last = 0;
    for (const std::int32_t share : now_.shares_of[m]) {
      first = std::min(first, start_[forward_of(share)]);
      last = std::max(last, end_[backward_of(share)]);
    }
    changes.push_back({first, 1});
    changes.push_back({last, -1});
  }
  std::sort(changes.begin(), changes.end());
  std::int32_t held = 0;
  for (const auto& [time, by] : changes) {
    if ((held += by) > work.in_flight) return true;
  }
  return false;
}

void MovablePlacement::keep() {
  before_ = now_;
  kept_start_ = start_;
  kept_end_ = end_;
}

void MovablePlacement::restore() { now_ = before_; }

Candidate MovablePlacement::candidate() const {
  Candidate result{makespan_, {}, {}};
  std::vector<std::int32_t> first(now_.shares.size(), 0);
  for (const auto& shares : now_.shares_of) {
    std::int32_t item = 0;
    for (const std::int32_t share : shares) {
      first[share] = item;
      item += now_.shares[share].count;
    }
  }
  for (std::int32_t lane = 0; lane < static_cast<std::int32_t>(now_.lanes.size()); ++lane) {
    std::int32_t position = 0;
    for (const std::int32_t node : now_.lanes[lane]) {
      if (node < num_actions_) {
        ++position;
        continue;
      }
      const std::int32_t share = (node - num_actions_) / 2;
      const bool is_forward = (node - num_actions_) % 2 == 0;
      result.actions.push_back(
          {lane, position, is_forward, now_.shares[share].microbatch, first[share], now_.shares[share].count});
    }
  }
  for (std::int32_t m = 0; m < problem_.num_microbatches(); ++m) {
    if (is_recomputed_[m]) result.recomputed.push_back(m);
  }
  return result;
}

}  // namespace hetsched
