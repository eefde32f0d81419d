#include "core/placement.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "core/placement_moves.h"
#include "core/placement_pass.h"

namespace hetsched {
namespace {

class Search {
 public:
  Search(const PlacementProblem& problem, std::int32_t budget) : problem_(problem), num_left_(std::max(budget, 1)) {}

  Placement run() {
    std::vector<Attempt> attempts;
    for (Policy& policy : base_policies()) {
      if (is_done()) break;
      const Time makespan = evaluate(policy);
      attempts.push_back({makespan, std::move(policy)});
    }
    std::stable_sort(attempts.begin(), attempts.end(),
                     [](const Attempt& a, const Attempt& b) { return a.makespan < b.makespan; });
    for (Attempt& attempt : attempts) bisect(attempt);
    wander();
    return {std::move(best_.actions), std::move(best_.recomputed), best_.makespan, problem_.lower_bound,
            num_evaluations_};
  }

 private:
  // A policy, and the makespan with the lower bound as its target.
  struct Attempt {
    Time makespan;
    Policy policy;
  };

  bool is_done() const {
    return num_left_ == 0 || (num_evaluations_ > 0 && best_.makespan <= problem_.lower_bound);
  }

  std::vector<Policy> base_policies() const {
    const auto num_microbatches = static_cast<std::size_t>(problem_.num_microbatches());
    std::vector<Policy> result;
    if (problem_.work.in_flight > 0) {
      // One that cannot get stuck comes first.
      const Recompute mode = problem_.work.may_recompute ? Recompute::IfStuck : Recompute::Never;
      result.push_back({problem_.lower_bound, false, true, mode,
                        std::vector<std::int32_t>(num_microbatches, kAny), true});
    }
    std::vector<Recompute> modes{Recompute::Never};
    if (problem_.work.may_recompute) modes = {Recompute::IfStuck, Recompute::IfFull, Recompute::Always};
    for (const std::int32_t share : {kAny, 2, 1}) {
      for (const Recompute mode : modes) {
        for (const int bits : {2, 0, 3, 1}) {
          result.push_back({problem_.lower_bound, (bits & 1) != 0, (bits & 2) != 0, mode,
                            std::vector<std::int32_t>(num_microbatches, kAny)});
          spread(result.back(), share);
        }
      }
      if (problem_.order.size() == problem_.work.forward.size()) break;
    }
    return result;
  }

  // Shares of at most so many times an even part; what the program waits for first is done by all lanes together.
  void spread(Policy& policy, std::int32_t num_parts) const {
    for (const std::int32_t m : problem_.order) {
      const bool is_first = m == problem_.order.front();
      policy.most_items[m] = is_first ? even_share(m) : num_parts == kAny ? kAny : num_parts * even_share(m);
    }
  }

  std::int32_t even_share(std::int32_t m) const {
    const auto num_lanes = static_cast<std::int32_t>(problem_.work.lanes.size());
    return (problem_.num_items(m) + num_lanes - 1) / num_lanes;
  }

  Time evaluate(const Policy& policy) {
    --num_left_;
    Candidate candidate = run_pass(problem_, policy);
    const Time makespan = candidate.makespan;
    if (num_evaluations_++ == 0 || makespan < best_.makespan) best_ = std::move(candidate);
    return makespan;
  }

  // The smallest target that a policy meets.
  void bisect(Attempt& attempt) {
    Time low = problem_.lower_bound + 1, high = attempt.makespan;
    for (std::int32_t i = 1; i < kBisections && !is_done(); ++i) {
      attempt.policy.target = low + (std::min(high, best_.makespan) - low) / 2;
      if (attempt.policy.target < low || low >= high) return;
      const Time makespan = evaluate(attempt.policy);
      if (makespan <= attempt.policy.target) {
        high = attempt.policy.target;
      } else {
        low = attempt.policy.target + 1;
        high = std::min(high, makespan);
      }
    }
  }

  // Small changes to the best placement. What makes it a little longer is kept, too, ever less of it: the makespan is
  // the same after most changes, and a way to a shorter one often leads over a longer one. How much longer depends on
  // how coarse the work is, so that half of the budget goes to short detours, half to long ones.
  void wander() {
    if (problem_.order.empty()) return;
    if (best_.makespan == kNever) throw std::logic_error("the encoder's state does not fit the program");
    Random random;
    const Time room = best_.makespan - problem_.lower_bound;
    wander(random, num_left_ / 2, room / kShortDetour);
    wander(random, num_left_, room * kLongDetour);
  }

  void wander(Random& random, std::int32_t num_steps, Time detour) {
    if (is_done()) return;
    MovablePlacement placement(problem_, best_);
    Time current = best_.makespan;
    for (std::int32_t step = 0; step < num_steps && !is_done(); ++step) {
      --num_left_;
      ++num_evaluations_;
      placement.change(random);
      const Time longest = best_.makespan + detour * (num_steps - step) / num_steps;
      if (!placement.time() || placement.makespan() > std::max(current, longest)) {
        placement.restore();
        continue;
      }
      placement.keep();
      current = placement.makespan();
      if (current < best_.makespan) best_ = placement.candidate();
    }
  }

  static constexpr std::int32_t kBisections = 8;
  static constexpr Time kShortDetour = 48;  // divides the distance to the bound
  static constexpr Time kLongDetour = 3;    // times that distance
  static constexpr std::int32_t kAny = std::numeric_limits<std::int32_t>::max();

  const PlacementProblem& problem_;
  std::int32_t num_left_;
  std::int32_t num_evaluations_ = 0;
  Candidate best_{};
};

}  // namespace

Placement place_encoder(const Program& program, const std::vector<Time>& durations, const EncoderWork& work,
                        std::int32_t budget) {
  const PlacementProblem problem(program, durations, work);
  return Search(problem, budget).run();
}

}  // namespace hetsched
