// Jobs to bins by cost, longest first.
#pragma once

#include <cstdint>
#include <vector>

namespace hetsched {

// The bin of each job: the costliest job first, into the bin with the smallest load so far; ties go to
// the smaller index. `loads` are the bins' initial loads, one per bin.
//
// Source: Graham 1969, longest processing time first: at most 4/3 - 1/(3 bins) of the optimum.
std::vector<std::int64_t> assign_longest_first(const std::vector<std::int64_t>& costs,
                                               std::vector<std::int64_t> loads);

}  // namespace hetsched
