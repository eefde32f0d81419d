// Runs a wired program in simulated time: the one engine of the checker (does it end?) and the simulator (when?).
//
// Each lane does its list in order, and has three engines: compute, send and receive.
//  - A compute action occupies the lane for its duration. The lanes of a gang start and end it together.
//  - A SEND posts its messages all at once and holds the lane until each is posted. A message is posted when its
//    channel has a free slot; with rendezvous, when its RECV is reached. Posted messages of a lane are transferred
//    one at a time, in the order they were posted, each when the receive engine of its destination is free; of several
//    that wait for one receive engine the one posted first goes first, then the one from the smaller lane.
//  - A RECV holds the lane until all its messages have arrived; then their slots are free again.
//  - A message that costs nothing, as do those of a lane to itself, arrives as it is posted and uses no engine. A lane
//    does not wait for itself: with rendezvous too its own messages are posted at once.
// All that happens at one time is worked off before any transfer starts at that time, so results depend on no order
// of evaluation.
#pragma once

#include "core/wiring.h"

namespace hetsched {

using Time = std::int64_t;  // nanoseconds

struct Costs {
  std::vector<Time> durations;       // [num_actions]; those of transfers are not read
  std::vector<Time> message_times;   // [num_names, direction, num_microbatches]
  std::vector<std::int64_t> slots;   // [num_names, direction], of each channel; negative: as many as needed
  bool is_rendezvous;
};

// What a lane that cannot go on waits for: `action` of `lane` waits until `for_lane` is done with `for_action`.
struct Wait {
  std::int32_t lane;
  std::int32_t action;
  std::int32_t for_lane;
  std::int32_t for_action;
};

struct Run {
  std::vector<Time> start, end;                  // [num_actions]; of a SEND or RECV, while it held the lane
  std::vector<Time> message_start, message_end;  // [num_messages], on the engines
  std::vector<std::int64_t> max_in_flight;       // [num_names, direction], of any one channel, posted and not received
  std::vector<std::int32_t> stopped_at;          // [num_lanes], the action a lane waits at, or the end of its list
  std::vector<Wait> waits;                       // one per lane that never ended; empty if all did
  Time makespan = 0;
};

// Throws std::invalid_argument if the arrays of `costs` do not fit the program, or a time is negative.
Run run(const Wiring& wiring, const Costs& costs, std::int32_t num_names, std::int32_t num_microbatches);

}  // namespace hetsched
