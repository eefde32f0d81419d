#include "core/placement.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/placement_pass.h"

namespace hetsched {
namespace {

// A fixed sequence of numbers, the same everywhere (splitmix64; Steele et al. 2014).
class Random {
 public:
  std::int32_t below(std::int32_t bound) {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<std::int32_t>((z ^ (z >> 31)) % static_cast<std::uint64_t>(bound));
  }

 private:
  std::uint64_t state_ = 0;
};

class Search {
 public:
  Search(const PlacementProblem& problem, std::int32_t budget) : problem_(problem), num_left_(std::max(budget, 1)) {}

  Placement run() {
    std::vector<Policy> policies = base_policies();
    for (Policy& policy : policies) bisect(policy);
    wander();
    const std::int32_t budget_used = num_evaluations_;
    return {std::move(best_.actions), std::move(best_.recomputed), best_.makespan, problem_.lower_bound, budget_used};
  }

 private:
  bool is_done() const {
    return num_left_ == 0 || (num_evaluations_ > 0 && best_.makespan <= problem_.lower_bound);
  }

  std::vector<Policy> base_policies() const {
    const auto num_microbatches = static_cast<std::size_t>(problem_.num_microbatches());
    std::vector<Policy> result;
    std::vector<Recompute> modes{Recompute::Never};
    if (problem_.work.may_recompute) modes = {Recompute::IfStuck, Recompute::IfFull, Recompute::Always};
    for (const std::int32_t share : {kAny, 2, 1}) {
      for (const Recompute mode : modes) {
        for (const int bits : {2, 0, 3, 1}) {
          result.push_back({problem_.lower_bound, (bits & 1) != 0, (bits & 2) != 0, false, mode,
                            std::vector<std::int32_t>(num_microbatches, -1),
                            std::vector<std::int8_t>(num_microbatches, 0),
                            std::vector<std::int32_t>(num_microbatches, kAny),
                            std::vector<Time>(problem_.is_encoder_lane.size(), 0)});
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
    if (num_evaluations_++ == 0 || makespan < best_.makespan) {
      best_ = std::move(candidate);
      best_policy_ = policy;
    }
    return makespan;
  }

  // The smallest target that a policy meets.
  void bisect(Policy& policy) {
    Time low = problem_.lower_bound, high = kNever;
    policy.target = low;
    for (std::int32_t i = 0; i < kBisections && !is_done() && low < high; ++i) {
      const Time makespan = evaluate(policy);
      if (makespan <= policy.target) {
        high = std::min(high, policy.target);
      } else {
        low = policy.target + 1;
        high = std::min(high, makespan);
      }
      policy.target = low + (std::min(high, best_.makespan) - low) / 2;
      if (policy.target < low) return;
    }
  }

  // Small changes to the best policy, kept where they do no harm.
  void wander() {
    if (problem_.order.empty()) return;
    Random random;
    Policy current = best_policy_;
    Time current_makespan = best_.makespan;
    while (!is_done()) {
      Policy changed = current;
      const std::int32_t num_changes = 1 + random.below(3);
      for (std::int32_t i = 0; i < num_changes; ++i) change(changed, random);
      const Time room = best_.makespan - problem_.lower_bound;
      changed.target = best_.makespan - 1 - room * random.below(8) / 8;
      changed.target = std::max(changed.target, problem_.lower_bound);
      const Time makespan = evaluate(changed);
      if (makespan <= current_makespan) {
        current = std::move(changed);
        current_makespan = makespan;
      }
    }
  }

  void change(Policy& policy, Random& random) {
    const auto num = static_cast<std::int32_t>(problem_.order.size());
    const std::int32_t m = problem_.order[random.below(num)];
    const auto& lanes = problem_.work.lanes;
    switch (random.below(9)) {
      case 0:
        policy.is_eager[m] ^= 1;
        break;
      case 1:
        policy.is_eager[m] ^= 2;
        break;
      case 2:
      case 3:
        policy.only_lane[m] = lanes[random.below(static_cast<std::int32_t>(lanes.size()))];
        break;
      case 4:
        policy.only_lane[m] = -1;
        break;
      case 5:
      case 6:
        policy.reserve[lanes[random.below(static_cast<std::int32_t>(lanes.size()))]] =
            (best_.makespan - problem_.lower_bound) * random.below(9) / 4;
        break;
      case 7:
        policy.most_items[m] = random.below(2) == 0 ? kAny : std::max(1, even_share(m) * (1 + random.below(4)) / 2);
        break;
      default:
        policy.backward_before_forward = !policy.backward_before_forward;
    }
  }

  static constexpr std::int32_t kBisections = 8;
  static constexpr std::int32_t kAny = std::numeric_limits<std::int32_t>::max();

  const PlacementProblem& problem_;
  std::int32_t num_left_;
  std::int32_t num_evaluations_ = 0;
  Candidate best_{};
  Policy best_policy_{};
};

}  // namespace

Placement place_encoder(const Program& program, const std::vector<Time>& durations, const EncoderWork& work,
                        std::int32_t budget) {
  const PlacementProblem problem(program, durations, work);
  return Search(problem, budget).run();
}

}  // namespace hetsched
