// One candidate placement: the program in simulated time, where each lane, whenever it is free, goes on with its list
// or takes encoder work, by a policy.
#pragma once

#include <vector>

#include "core/placement.h"
#include "core/precedence.h"

namespace hetsched {

enum class Recompute : std::int32_t { Never, IfStuck, IfFull, Always };

// What tells one candidate from another.
struct Policy {
  Time target;                    // makespan to meet: work is taken where the rest of the program still meets it
  bool forward_first;             // before a program's action that is ready, and not only in place of waiting
  bool backward_first;
  Recompute recompute;
  std::vector<std::int32_t> most_items;   // [num_microbatches], of one share
  bool is_whole = false;                  // a microbatch goes to one lane
};

// What all candidates have in common.
struct PlacementProblem {
  PlacementProblem(const Program& program, std::vector<Time> durations, const EncoderWork& work);

  std::int32_t num_items(std::int32_t m) const { return work.item_begin[m + 1] - work.item_begin[m]; }
  std::int32_t num_microbatches() const { return static_cast<std::int32_t>(work.item_begin.size()) - 1; }

  const EncoderWork& work;
  const Precedence precedence;
  const std::vector<Time> durations;
  std::vector<std::int8_t> is_encoder_lane;  // [num_lanes]
  std::vector<Time> tail;     // [num_actions], from an action's start to the end of the step, at least
  std::vector<Time> left;     // [num_actions], work of its lane from an action on
  std::vector<std::int32_t> order;  // microbatches with items, in the order in which the program needs them
  std::vector<Time> gate_tail;   // [num_microbatches], of the actions that take its rows
  std::vector<Time> give_tail;   // [num_microbatches], from the end of what gives its gradient to the end of the step
  std::vector<std::vector<std::int32_t>> give_actions;  // [num_microbatches], that give its gradient
  Time lower_bound = 0;
};

struct Candidate {
  Time makespan;
  std::vector<PlacedAction> actions;
  std::vector<std::int32_t> recomputed;
};

// A makespan of kNever if the lanes come to wait for state that none of them gives up: shares of one microbatch can
// hold it where whole microbatches cannot.
Candidate run_pass(const PlacementProblem& problem, const Policy& policy);

}  // namespace hetsched
