// Where the actions of an encoder go in a program whose other actions keep their order: between them, on any of the
// encoder's lanes.
#pragma once

#include "core/agenda.h"
#include "core/program.h"

namespace hetsched {

// The encoder's work. Items of microbatch m are item_begin[m]..item_begin[m + 1] of forward and backward; those of one
// microbatch that go to one lane follow one another and make up one action there.
struct EncoderWork {
  std::int32_t edge;                     // of the program
  std::vector<std::int32_t> lanes;       // that may take items, ascending
  std::vector<std::int32_t> item_begin;  // [num_microbatches + 1]
  std::vector<Time> forward, backward;   // [num_items]
  bool has_backward;
  std::int32_t in_flight;  // microbatches of state held at once, over all lanes; 0: any number
  bool may_recompute;      // keep only the output, and pay the forward again in the backward
};

// An encoder action: it comes right before the `position`-th action of the lane's given list, after those placed there
// before it.
struct PlacedAction {
  std::int32_t lane;
  std::int32_t position;
  bool is_forward;
  std::int32_t microbatch;
  std::int32_t first_item;  // of the microbatch
  std::int32_t num_items;
};

struct Placement {
  std::vector<PlacedAction> actions;  // those of a lane in their order
  std::vector<std::int32_t> recomputed;  // microbatches
  Time makespan;
  Time lower_bound;
  std::int32_t num_evaluations;
};

// The best placement of `budget` that were tried, at least one. `durations` are those of the program's actions;
// messages take no time.
//
// Throws std::invalid_argument if the program waits for itself, or sizes do not fit.
Placement place_encoder(const Program& program, const std::vector<Time>& durations, const EncoderWork& work,
                        std::int32_t budget);

}  // namespace hetsched
