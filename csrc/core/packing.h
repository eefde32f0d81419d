// Samples into token sequences of a fixed capacity.
#pragma once

#include <cstdint>
#include <vector>

namespace hetsched {

// The sequence of each sample by best fit decreasing: the longest sample first, into the fullest sequence that still
// has room, otherwise into a new one; ties go to the smaller index. O(n log n). Throws std::invalid_argument if a length is
// negative or above the capacity.
//
// Source: Johnson 1974: at most 11/9 of the optimum; on many short samples next to nothing above it.
std::vector<std::int64_t> pack_best_fit(const std::vector<std::int64_t>& lengths, std::int64_t capacity);

// The sequence of each sample when a sequence is a run of consecutive samples: a new one begins where the next
// sample does not fit. Throws as above.
std::vector<std::int64_t> pack_in_order(const std::vector<std::int64_t>& lengths, std::int64_t capacity);

}  // namespace hetsched
