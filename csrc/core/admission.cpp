#include "core/admission.h"

#include <algorithm>
#include <set>

#include "core/precedence.h"

namespace hetsched {
namespace {

class Admission {
 public:
  Admission(const Program& program, const std::vector<Time>& durations, std::int32_t edge, std::int32_t in_flight,
            Time latency)
      : program_(program),
        durations_(durations),
        graph_(find_precedence(program, edge)),
        latency_(latency),
        agenda_(graph_.num_lanes()),
        free_(graph_.num_lanes(), 0),
        ready_(graph_.num_actions(), 0),
        missing_(graph_.num_needed),
        missing_gives_(graph_.num_gives),
        pending_(graph_.num_lanes()),
        done_(graph_.num_lanes()),
        of_turn_(program.num_microbatches) {
    const std::vector<std::int32_t> turn = turns();
    for (std::int32_t action = 0; action < graph_.num_actions(); ++action) {
      of_turn_[turn[first_part(action).first]].push_back(action);
    }
    for (std::int32_t i = 0; i < std::min(in_flight, program.num_microbatches); ++i) admit(0);
  }

  std::vector<std::int32_t> run() {
    while (agenda_.time_of(agenda_.first()) != kNever) {
      const std::int32_t lane = agenda_.first();
      const Time now = agenda_.time_of(lane);
      agenda_.set(lane, kNever);
      const std::int32_t action = choose(lane, now);
      if (action >= 0) start(lane, action, now);
    }
    std::vector<std::int32_t> order;
    for (const std::vector<std::int32_t>& lane : done_) order.insert(order.end(), lane.begin(), lane.end());
    return order;
  }

 private:
  const Part& first_part(std::int32_t action) const { return program_.parts[program_.part_begin[action]]; }

  // Microbatches are let in in the order in which the edge's stage takes them.
  std::vector<std::int32_t> turns() const {
    std::vector<std::int32_t> turn(program_.num_microbatches, -1);
    std::int32_t num_seen = 0;
    for (const std::int32_t action : graph_.order) {
      const std::int32_t m = graph_.gate[action];
      if (m >= 0 && turn[m] < 0) turn[m] = num_seen++;
    }
    return turn;
  }

  void admit(Time time) {
    if (num_admitted_ == program_.num_microbatches) return;
    for (const std::int32_t action : of_turn_[num_admitted_]) {
      ready_[action] = std::max(ready_[action], time);
      pending_[graph_.lane_of[action]].insert(action);
      wake(graph_.lane_of[action], time);
    }
    ++num_admitted_;
  }

  std::int32_t choose(std::int32_t lane, Time now) {
    Time soonest = kNever;
    std::int32_t num_seen = 0;
    for (const std::int32_t action : pending_[lane]) {
      if (num_seen++ == kLookAhead) break;
      const bool is_first = num_seen == 1;
      if (missing_[action] > 0 || (!is_first && first_part(action).kind == Kind::F)) continue;
      if (needs_earlier(lane, action)) continue;
      if (ready_[action] <= now) return action;
      soonest = std::min(soonest, ready_[action]);
    }
    agenda_.set(lane, soonest);
    return -1;
  }

  // Whether an action of the same microbatch comes before it on its lane.
  bool needs_earlier(std::int32_t lane, std::int32_t action) const {
    for (const std::int32_t other : pending_[lane]) {
      if (other == action) return false;
      if (first_part(other).first == first_part(action).first) return true;
    }
    return false;
  }

  void start(std::int32_t lane, std::int32_t action, Time now) {
    pending_[lane].erase(action);
    done_[lane].push_back(action);
    free_[lane] = now + durations_[action];
    wake(lane, free_[lane]);
    for (std::int32_t n = graph_.next_begin[action]; n < graph_.next_begin[action + 1]; ++n) {
      const std::int32_t next = graph_.next[n];
      ready_[next] = std::max(ready_[next], free_[lane]);
      --missing_[next];
      wake(graph_.lane_of[next], free_[lane]);
    }
    const std::int32_t m = graph_.gives[action];
    if (m >= 0 && --missing_gives_[m] == 0) admit(free_[lane] + latency_);
  }

  void wake(std::int32_t lane, Time time) {
    agenda_.set(lane, std::min(agenda_.time_of(lane), std::max(time, free_[lane])));
  }

  static constexpr std::int32_t kLookAhead = 16;

  const Program& program_;
  const std::vector<Time>& durations_;
  const Precedence graph_;
  const Time latency_;
  Agenda agenda_;
  std::vector<Time> free_, ready_;
  std::vector<std::int32_t> missing_, missing_gives_;
  std::vector<std::set<std::int32_t>> pending_;  // let in, in the program's order
  std::vector<std::vector<std::int32_t>> done_, of_turn_;
  std::int32_t num_admitted_ = 0;
};

}  // namespace

std::vector<std::int32_t> limit_in_flight(const Program& program, const std::vector<Time>& durations,
                                          std::int32_t edge, std::int32_t in_flight, Time latency) {
  return Admission(program, durations, edge, in_flight, latency).run();
}

}  // namespace hetsched
