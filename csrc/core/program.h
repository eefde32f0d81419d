// A lowered program as flat integers, what the checker and the simulator work on.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace hetsched {

// In the order of hetsched/check/flat.py; an OVERLAP_F_B is an action of two parts, F and B.
enum class Kind : std::int32_t { F, B, I, W, SendF, RecvF, SendB, RecvB, Unshard, Reshard, ReduceGrad };
constexpr std::int32_t kNumMicrobatchKinds = 8;
constexpr std::int32_t kNumKinds = 11;

constexpr bool is_compute(Kind kind) { return kind <= Kind::W; }
constexpr bool is_transfer(Kind kind) { return kind >= Kind::SendF && kind <= Kind::RecvB; }
constexpr bool is_collective(Kind kind) { return kind >= Kind::Unshard; }

enum class Direction : std::int32_t { Forward, Backward };

// `name` counts modules first, then edges. A collective has the empty window 0..-1.
struct Part {
  Kind kind;
  std::int32_t name;
  std::int32_t stage;
  std::int32_t first;
  std::int32_t last;

  bool operator==(const Part& other) const {
    return kind == other.kind && name == other.name && stage == other.stage && first == other.first &&
           last == other.last;
  }
};

using Lanes = std::vector<std::int32_t>;

struct ModuleSpec {
  std::vector<std::vector<Lanes>> stages;  // for each stage its gangs
  bool has_backward;
  bool takes_items;
};

struct EdgeSpec {
  std::int32_t producer;
  std::int32_t consumer;
  std::int32_t stage;
};

// Actions are numbered lane by lane, so that of two actions of one lane the smaller number comes first.
struct Program {
  std::int32_t num_lanes;
  std::int32_t num_microbatches;
  std::vector<ModuleSpec> modules;
  std::vector<EdgeSpec> edges;
  std::vector<Part> parts;
  std::vector<std::int32_t> part_begin;  // [num_actions + 1], into parts
  std::vector<std::int32_t> lane_begin;  // [num_lanes + 1], into actions
  std::vector<std::pair<std::int32_t, std::int32_t>> waits{};  // (action, one that waits for its end), beyond results

  std::int32_t num_actions() const { return static_cast<std::int32_t>(part_begin.size()) - 1; }
  std::int32_t num_names() const { return static_cast<std::int32_t>(modules.size() + edges.size()); }
  bool is_edge(std::int32_t name) const { return name >= static_cast<std::int32_t>(modules.size()); }
  const EdgeSpec& edge(std::int32_t name) const { return edges[name - modules.size()]; }
};

// What is wrong with a program; hetsched/check/validate.py has the words.
enum class FaultKind : std::int32_t {
  NoSuchStage,        // the module has no such stage, or the edge does not end there
  NotOnLane,          // the lane does not hold the stage
  MicrobatchRange,    // a microbatch beyond the program's
  WindowOfTransfer,   // a transfer of more than one microbatch
  Duplicate,          // done already, at `other`
  Frozen,             // a backward of a module that has none
  BackwardTwice,      // a B beside an I or W, at `other`
  Missing,            // `wanted` is not in the list of lane `other_lane`
  UsedBeforeExists,   // `wanted` comes later, at `other`
  NothingToTransfer,  // no lane makes the result, or it stays on the lane
  OutOfOrder,         // a RECV takes the message that carries another microbatch, sent at `other`
  NotUnsharded,       // a compute action or RESHARD without UNSHARD before it, or UNSHARD twice
};

// Thrown by the passes of soundness.h; actions are numbers of the whole program, -1 where there is none.
struct Fault {
  FaultKind kind;
  std::int32_t lane;
  std::int32_t action;
  std::int32_t other_lane = -1;
  std::int32_t other_action = -1;
  std::optional<Part> wanted = std::nullopt;
};

}  // namespace hetsched
