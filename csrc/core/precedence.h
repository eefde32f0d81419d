// The actions of a program without transfers, and which of them need which others' results.
#pragma once

#include "core/agenda.h"
#include "core/program.h"

namespace hetsched {

// Actions are numbered as in the program. Needs between actions of one lane are left to the lane's order.
struct Precedence {
  std::vector<std::int32_t> lane_begin;
  std::vector<std::int32_t> lane_of;      // [num_actions]
  std::vector<std::int32_t> next_begin;   // [num_actions + 1], into next
  std::vector<std::int32_t> next;         // the actions that need an action's result
  std::vector<std::int32_t> num_needed;   // [num_actions], results that an action needs
  std::vector<std::int32_t> gate;         // [num_actions], microbatch whose rows of `edge` an action takes, or -1
  std::vector<std::int32_t> gives;        // [num_actions], microbatch whose gradient it gives to `edge`, or -1
  std::vector<std::int32_t> gate_begin;   // [num_microbatches + 1], into gate_actions
  std::vector<std::int32_t> gate_actions;
  std::vector<std::int32_t> num_gives;    // [num_microbatches]
  std::vector<std::int32_t> order;        // all actions, each after what it needs and what precedes it on its lane

  std::int32_t num_lanes() const { return static_cast<std::int32_t>(lane_begin.size()) - 1; }
  std::int32_t num_actions() const { return static_cast<std::int32_t>(lane_of.size()); }
};

// Throws std::invalid_argument if the program waits for itself.
Precedence find_precedence(const Program& program, std::int32_t edge);

// When each action starts if none waits longer than it must. Throws std::invalid_argument if sizes do not fit.
std::vector<Time> earliest_starts(const Precedence& precedence, const std::vector<Time>& durations);

}  // namespace hetsched
