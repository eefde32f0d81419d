#include "core/placement_pass.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace hetsched {
namespace {

// What one lane does of one microbatch.
struct Share {
  std::int32_t lane;
  std::int32_t microbatch;
  std::int32_t first;
  std::int32_t count;
  Time backward;  // duration
  Time released = kNever;
};

struct MicrobatchState {
  Time forward_end = 0;
  Time released = 0;
  Time backward_end = 0;
  std::int32_t missing_gives = 0;
  std::int32_t open_shares = 0;  // without their backward
  std::int32_t last_share = -1;
  bool is_recomputed = false;
};

struct LaneState {
  Time free = 0;
  std::int32_t next = 0;  // action
  std::int32_t end = 0;
  Time backlog = 0;       // backwards of the forwards it has taken
  std::int32_t last_microbatch = -1;
  bool is_passed_over = false;  // could not take what is next, but might take what comes after
  std::size_t head = 0;
  std::vector<std::int32_t> shares;  // released, by release
};

class Pass {
 public:
  Pass(const PlacementProblem& problem, const Policy& policy)
      : problem_(problem),
        work_(problem.work),
        graph_(problem.precedence),
        policy_(policy),
        target_(policy.target),
        agenda_(graph_.num_lanes()),
        lanes_(graph_.num_lanes()),
        states_(problem.num_microbatches()),
        missing_(graph_.num_needed),
        ready_(graph_.num_actions(), 0),
        previous_share_() {
    for (std::int32_t lane = 0; lane < graph_.num_lanes(); ++lane) {
      lanes_[lane].next = graph_.lane_begin[lane];
      lanes_[lane].end = graph_.lane_begin[lane + 1];
      agenda_.set(lane, 0);
    }
    for (const std::int32_t m : problem.order) {
      states_[m].missing_gives = graph_.num_gives[m];
      for (std::int32_t i = graph_.gate_begin[m]; i < graph_.gate_begin[m + 1]; ++i) ++missing_[graph_.gate_actions[i]];
    }
    num_left_ = graph_.num_actions();
    find_next(0);
  }

  Candidate run() {
    while (num_left_ > 0 || next_ < problem_.order.size() || num_open_ > 0) {
      const std::int32_t lane = agenda_.first();
      const Time now = agenda_.time_of(lane);
      if (now == kNever) {
        if (!force()) return {kNever, {}, {}};
        continue;
      }
      agenda_.set(lane, kNever);
      decide(lane, now);
    }
    Candidate result{0, std::move(placed_), {}};
    for (const LaneState& lane : lanes_) result.makespan = std::max(result.makespan, lane.free);
    for (std::int32_t m = 0; m < problem_.num_microbatches(); ++m) {
      if (states_[m].is_recomputed) result.recomputed.push_back(m);
    }
    return result;
  }

 private:
  // A share that a lane might take next: `count` items, none if it does not fit.
  struct Offer {
    std::int32_t count = 0;
    Time forward = 0;
    Time backward = 0;
    bool is_recomputed = false;
  };

  void decide(std::int32_t lane, Time now) {
    LaneState& here = lanes_[lane];
    here.is_passed_over = false;
    const bool has_action = here.next < here.end;
    const bool is_known = has_action && missing_[here.next] == 0;
    const bool is_ready = is_known && ready_[here.next] <= now;
    Time limit = has_action ? target_ - problem_.tail[here.next] : kNever;
    // In place of waiting, work may take as long as the wait does.
    if (is_known && !is_ready) limit = std::max(limit, ready_[here.next]);
    if (problem_.is_encoder_lane[lane]) {
      if (try_forward(lane, limit, is_ready) || try_backward(lane, now, limit, is_ready)) return;
    }
    if (is_ready) return do_action(lane);
    Time wake = is_known ? ready_[here.next] : kNever;
    if (here.head < here.shares.size()) {
      const Time released = shares_[here.shares[here.head]].released;
      if (released > now) wake = std::min(wake, released);
    }
    agenda_.set(lane, wake);
  }

  bool try_backward(std::int32_t lane, Time now, Time limit, bool is_ready) {
    const LaneState& here = lanes_[lane];
    if (here.head == here.shares.size()) return false;
    const Share& share = shares_[here.shares[here.head]];
    if (share.released > now) return false;
    if (!is_full()) {
      if (is_ready && !policy_.backward_first) return false;
      if (limit != kNever && std::max(here.free, share.released) + share.backward > limit) return false;
    }
    do_backward(lane);
    return true;
  }

  bool try_forward(std::int32_t lane, Time limit, bool is_ready) {
    if (next_ == problem_.order.size()) return false;
    const std::int32_t m = problem_.order[next_];
    LaneState& here = lanes_[lane];
    here.is_passed_over = true;
    const bool is_late = work_.in_flight > 0 && is_awaited(m);
    if (is_ready && !policy_.forward_first && !is_late) return false;
    if (here.last_microbatch == m) return false;
    const Offer offer = is_late ? rest(lane, m) : fitting(lane, m, limit);
    if (offer.count == 0) return false;
    do_forward(lane, offer);
    return true;
  }

  // Whether as much state as there may be is held, so that a backward is worth its delay.
  bool is_full() const {
    return work_.in_flight > 0 && num_opened_ - static_cast<std::int32_t>(closed_.size()) >= work_.in_flight;
  }

  // Whether some lane can go on with nothing but the microbatch's rows.
  bool is_awaited(std::int32_t m) const {
    for (std::int32_t i = graph_.gate_begin[m]; i < graph_.gate_begin[m + 1]; ++i) {
      const std::int32_t action = graph_.gate_actions[i];
      if (lanes_[graph_.lane_of[action]].next == action && missing_[action] == 1) return true;
    }
    return false;
  }

  // All that is left of the microbatch, if its state finds room.
  Offer rest(std::int32_t lane, std::int32_t m) const {
    Offer offer;
    if (!may_open(m, lanes_[lane].free)) return offer;
    offer.is_recomputed = states_[m].is_recomputed || policy_.recompute == Recompute::Always;
    for (std::int32_t i = work_.item_begin[m] + next_item_; i < work_.item_begin[m + 1]; ++i) add(offer, i);
    return offer;
  }

  // The items from the next one on that the lane can do by `limit`, so that the rest still meets the target.
  Offer fitting(std::int32_t lane, std::int32_t m, Time limit) {
    const LaneState& here = lanes_[lane];
    Offer offer;
    if (!may_open(m, here.free)) {
      if (policy_.recompute < Recompute::IfFull) return offer;
      offer.is_recomputed = true;
    }
    offer.is_recomputed = offer.is_recomputed || states_[m].is_recomputed || policy_.recompute == Recompute::Always;
    limit = std::min(limit, target_ - problem_.gate_tail[m]);
    const Time lane_work = here.free + here.backlog + (here.next < here.end ? problem_.left[here.next] : 0);
    const std::int32_t end = work_.item_begin[m + 1];
    Offer grown = offer;
    for (std::int32_t item = work_.item_begin[m] + next_item_; item < end; ++item) {
      if (grown.count == policy_.most_items[m]) break;
      add(grown, item);
      if (here.free + grown.forward > limit || lane_work + grown.forward + grown.backward > target_ ||
          grown.backward > problem_.give_tail[m]) {
        break;
      }
      offer = grown;
    }
    // The last lane that may take a share takes all that is left.
    const bool is_last = policy_.is_whole || num_takers_ + 1 == static_cast<std::int32_t>(work_.lanes.size());
    if (is_last && work_.item_begin[m] + next_item_ + offer.count < end) offer.count = 0;
    return offer;
  }

  void add(Offer& offer, std::int32_t item) const {
    ++offer.count;
    offer.forward += work_.forward[item];
    if (!work_.has_backward) return;
    offer.backward += work_.backward[item] + (offer.is_recomputed ? work_.forward[item] : 0);
  }

  // Whether a share of the microbatch may start at a time. State that ended by then, as the lane itself can tell from
  // the end of what it did last, leaves room.
  bool may_open(std::int32_t m, Time start) const {
    if (work_.in_flight == 0 || !work_.has_backward || states_[m].is_recomputed) return true;
    const auto num_closed = std::upper_bound(closed_.begin(), closed_.end(), start) - closed_.begin();
    const std::int32_t num_opened = num_opened_ + (num_takers_ == 0 ? 1 : 0);
    return num_opened - static_cast<std::int32_t>(num_closed) <= work_.in_flight;
  }

  void do_forward(std::int32_t lane, const Offer& offer) {
    LaneState& here = lanes_[lane];
    const std::int32_t m = problem_.order[next_];
    MicrobatchState& state = states_[m];
    placed_.push_back({lane, here.next - graph_.lane_begin[lane], true, m, next_item_, offer.count});
    here.free += offer.forward;
    here.backlog += offer.backward;
    here.last_microbatch = m;
    if (offer.is_recomputed) state.is_recomputed = true;
    if (num_takers_++ == 0 && !state.is_recomputed) ++num_opened_;
    state.forward_end = std::max(state.forward_end, here.free);
    if (work_.has_backward) {
      shares_.push_back({lane, m, next_item_, offer.count, offer.backward});
      previous_share_.push_back(state.last_share);
      state.last_share = static_cast<std::int32_t>(shares_.size()) - 1;
      ++state.open_shares;
      ++num_open_;
    }
    agenda_.set(lane, here.free);
    next_item_ += offer.count;
    if (next_item_ == problem_.num_items(m)) {
      for (std::int32_t i = graph_.gate_begin[m]; i < graph_.gate_begin[m + 1]; ++i) {
        settle(graph_.gate_actions[i], state.forward_end);
      }
      find_next(next_ + 1);
    }
  }

  // Turns to the next microbatch; lanes that could not take the one before may want it.
  void find_next(std::size_t position) {
    next_ = position;
    next_item_ = num_takers_ = 0;
    for (const std::int32_t lane : work_.lanes) {
      if (lanes_[lane].is_passed_over) wake(lane, lanes_[lane].free);
    }
  }

  void do_backward(std::int32_t lane) {
    LaneState& here = lanes_[lane];
    const Share& share = shares_[here.shares[here.head++]];
    MicrobatchState& state = states_[share.microbatch];
    const std::int32_t position = here.next - graph_.lane_begin[lane];
    placed_.push_back({lane, position, false, share.microbatch, share.first, share.count});
    here.free = std::max(here.free, share.released) + share.backward;
    here.backlog -= share.backward;
    state.backward_end = std::max(state.backward_end, here.free);
    --num_open_;
    if (--state.open_shares == 0 && work_.in_flight > 0 && !state.is_recomputed) {
      closed_.insert(std::upper_bound(closed_.begin(), closed_.end(), state.backward_end), state.backward_end);
    }
    agenda_.set(lane, here.free);
  }

  void do_action(std::int32_t lane) {
    LaneState& here = lanes_[lane];
    const std::int32_t action = here.next++;
    const Time start = std::max(here.free, ready_[action]);
    target_ = std::max(target_, start + problem_.tail[action]);
    here.free = start + problem_.durations[action];
    --num_left_;
    agenda_.set(lane, here.free);
    for (std::int32_t n = graph_.next_begin[action]; n < graph_.next_begin[action + 1]; ++n) {
      settle(graph_.next[n], here.free);
    }
    if (graph_.gives[action] >= 0) release(graph_.gives[action], here.free);
  }

  void settle(std::int32_t action, Time time) {
    ready_[action] = std::max(ready_[action], time);
    const std::int32_t lane = graph_.lane_of[action];
    if (--missing_[action] == 0 && lanes_[lane].next == action) wake(lane, ready_[action]);
  }

  void release(std::int32_t m, Time time) {
    MicrobatchState& state = states_[m];
    state.released = std::max(state.released, time);
    if (--state.missing_gives > 0) return;
    for (std::int32_t s = state.last_share; s >= 0; s = previous_share_[s]) {
      shares_[s].released = state.released;
      lanes_[shares_[s].lane].shares.push_back(s);
      wake(shares_[s].lane, state.released);
    }
  }

  void wake(std::int32_t lane, Time time) {
    time = std::max(time, lanes_[lane].free);
    if (time < agenda_.time_of(lane)) agenda_.set(lane, time);
  }

  // Every lane waits: take what fits worst of all. False if nothing does.
  bool force() {
    if (next_ < problem_.order.size() && force_forward()) return true;
    std::int32_t best = -1;
    for (const std::int32_t lane : work_.lanes) {
      if (lanes_[lane].head == lanes_[lane].shares.size()) continue;
      if (best < 0 || released(lane) < released(best)) best = lane;
    }
    if (best < 0) return false;
    do_backward(best);
    return true;
  }

  Time released(std::int32_t lane) const { return shares_[lanes_[lane].shares[lanes_[lane].head]].released; }

  bool force_forward() {
    const std::int32_t m = problem_.order[next_];
    const std::int32_t num_items = problem_.num_items(m) - next_item_;
    std::int32_t best = -1;
    Offer best_offer;
    Time best_end = 0;
    const auto num_left = static_cast<std::int32_t>(work_.lanes.size()) - num_takers_;
    for (const std::int32_t lane : work_.lanes) {
      const LaneState& here = lanes_[lane];
      if (here.last_microbatch == m && num_takers_ > 0) continue;
      const bool is_open = may_open(m, here.free);
      if (!is_open && policy_.recompute == Recompute::Never) continue;
      Offer offer;
      offer.is_recomputed = !is_open || states_[m].is_recomputed || policy_.recompute == Recompute::Always;
      // With bounded state the lanes that may go on are few: this one takes all.
      const std::int32_t count = work_.in_flight > 0 ? num_items : (num_items + num_left - 1) / num_left;
      for (std::int32_t i = 0; i < count; ++i) add(offer, work_.item_begin[m] + next_item_ + i);
      const Time after = here.next < here.end ? problem_.tail[here.next] : here.backlog;
      const Time end = here.free + offer.forward + std::max(after, problem_.gate_tail[m]);
      const bool is_better = best < 0 || std::make_pair(offer.is_recomputed, end) <
                                             std::make_pair(best_offer.is_recomputed, best_end);
      if (is_better) best = lane, best_offer = offer, best_end = end;
    }
    if (best < 0) return false;
    do_forward(best, best_offer);
    return true;
  }

  const PlacementProblem& problem_;
  const EncoderWork& work_;
  const Precedence& graph_;
  const Policy& policy_;
  Time target_;  // grows with what is late already
  Agenda agenda_;
  std::vector<LaneState> lanes_;
  std::vector<MicrobatchState> states_;
  std::vector<std::int32_t> missing_;
  std::vector<Time> ready_;
  std::vector<Share> shares_;
  std::vector<std::int32_t> previous_share_;  // of the same microbatch
  std::vector<Time> closed_;                  // when state ended, ascending
  std::vector<PlacedAction> placed_;
  std::size_t next_ = 0;         // in problem.order
  std::int32_t next_item_ = 0;   // of that microbatch
  std::int32_t num_takers_ = 0;  // lanes that have a share of it
  std::int32_t num_opened_ = 0;
  std::int32_t num_left_ = 0;    // of the program's actions
  std::int32_t num_open_ = 0;    // shares without their backward
};

}  // namespace

Candidate run_pass(const PlacementProblem& problem, const Policy& policy) { return Pass(problem, policy).run(); }

}  // namespace hetsched
