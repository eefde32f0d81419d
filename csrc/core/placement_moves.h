// A placement that is changed by one share at a time.
#pragma once

#include <vector>

#include "core/placement_pass.h"
#include "core/random.h"

namespace hetsched {

// The lists of all lanes with the encoder's actions, and when each action starts and ends.
class MovablePlacement {
 public:
  MovablePlacement(const PlacementProblem& problem, const Candidate& start);

  // Makes a random change. False, and no change, if there was nothing to do.
  bool change(Random& random);

  // Times the lists; false if they wait in a circle or hold too much state.
  bool time();

  // As it was before the last change.
  void restore();
  void keep();

  Time makespan() const { return makespan_; }
  Candidate candidate() const;

 private:
  struct Share {
    std::int32_t microbatch;
    std::int32_t lane;
    std::int32_t count;  // items
  };

  std::int32_t forward_of(std::int32_t share) const { return num_actions_ + 2 * share; }
  std::int32_t backward_of(std::int32_t share) const { return num_actions_ + 2 * share + 1; }

  void set_durations(std::int32_t m);
  std::int32_t random_share(Random& random) const;
  bool move_whole(Random& random);
  bool move_backward(Random& random);
  bool move_items(Random& random);
  std::int32_t new_share(std::int32_t m, std::int32_t lane);
  std::int32_t free_lane(std::int32_t m, Random& random) const;
  void take_out(std::int32_t lane, std::int32_t node);
  void put_forward(std::int32_t share, Random& random);
  void put_backward(std::int32_t share, Random& random);
  void put_between(std::int32_t node, std::int32_t lane, Time from, Time to, Random& random);
  std::int32_t rank(std::int32_t node) const;
  void settle(std::int32_t node, Time time);
  bool holds_too_much() const;

  struct Lists {
    std::vector<Share> shares;
    std::vector<std::vector<std::int32_t>> lanes;      // nodes: the program's actions, then each share's two
    std::vector<std::vector<std::int32_t>> shares_of;  // [num_microbatches], in the order of their items
    std::vector<Time> durations;                       // [num_nodes]
  };

  const PlacementProblem& problem_;
  const std::int32_t num_actions_;
  std::vector<std::int8_t> is_recomputed_;
  std::vector<std::int32_t> forward_rank_, backward_rank_;
  Lists now_, before_;
  std::vector<std::int32_t> lane_of_, next_on_lane_, missing_;
  std::vector<std::int32_t> todo_;
  std::vector<Time> start_, end_, kept_start_, kept_end_, free_, ready_;
  Time makespan_ = 0;
};

}  // namespace hetsched
