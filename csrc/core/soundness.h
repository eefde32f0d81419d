// What can be said of a program lane by lane, before anything runs: nothing missing, nothing used before it exists.
#pragma once

#include "core/sites.h"

namespace hetsched {

// Every forward that must happen does, and every forward of a module that has a backward gets one: B, or I and W.
// A program without a single backward or REDUCE_GRAD is a forward-only step, and sound. Throws a Fault.
void check_complete(const Program& program, const Sites& sites);

// Each action comes after what it needs from its own lane, and each transfer has its other end. Throws a Fault.
void check_order_on_lanes(const Program& program, const Sites& sites);

// UNSHARD and RESHARD alternate around the compute actions of a stage that has them. If one stage of a module has a
// REDUCE_GRAD, all have one, after their last weight gradient. Throws a Fault.
void check_parameters(const Program& program, const Sites& sites);

}  // namespace hetsched
