// A pipeline with fewer microbatches in it.
#pragma once

#include "core/agenda.h"
#include "core/program.h"

namespace hetsched {

// For each lane the order of its actions in which at most `in_flight` microbatches are between their forward and
// `latency` after their gradient at the stage that the edge enters: a microbatch's actions wait, all of them, until it
// is let in. Of those let in each lane does the first of the program's order, or, while that waits for its input, the
// first backward that does not: no lane holds more than in the program. It cannot wait in a circle where the program
// does not, since of the actions left the first, in any order the program can be run in, can always go.
//
// Throws std::invalid_argument if the program waits for itself.
std::vector<std::int32_t> limit_in_flight(const Program& program, const std::vector<Time>& durations,
                                          std::int32_t edge, std::int32_t in_flight, Time latency);

}  // namespace hetsched
