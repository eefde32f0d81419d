// A makespan that no program of the same work can beat.
#pragma once

#include "core/engine.h"

namespace hetsched {

// The same work: the same compute actions and collectives with the same durations, in any order, on the same lanes;
// only an item module's actions may go to any gang of their stage. The bound is the largest of
//  - for each lane, the end of its actions done one at a time with preemption, each no earlier than the longest
//    path of results into it, and followed by the longest path out of it (head + work + tail, for the
//    worst choice of actions; Jackson 1955, Carlier 1982);
//  - for the lanes that a movable stage may use, all the work that is bound to be on them, shared equally;
//  - the longest path.
// A path pays its messages but no waiting for engines; a message that might stay on its lane is free.
Time lower_bound(const Program& program, const Sites& sites, const Wiring& wiring, const Costs& costs);

}  // namespace hetsched
