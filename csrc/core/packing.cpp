#include "core/packing.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace hetsched {
namespace {

void check_lengths(const std::vector<std::int64_t>& lengths, std::int64_t capacity) {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > capacity) {
      throw std::invalid_argument("lengths: sample " + std::to_string(i) + " has " + std::to_string(lengths[i]) +
                                  " tokens, capacity is " + std::to_string(capacity));
    }
  }
}

}  // namespace

std::vector<std::int64_t> pack_best_fit(const std::vector<std::int64_t>& lengths, std::int64_t capacity) {
  check_lengths(lengths, capacity);
  std::vector<std::size_t> by_length(lengths.size());
  std::iota(by_length.begin(), by_length.end(), std::size_t{0});
  std::stable_sort(by_length.begin(), by_length.end(),
                   [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::int64_t> sequence_of(lengths.size());
  std::set<std::pair<std::int64_t, std::int64_t>> rooms;  // (tokens left, sequence)
  std::int64_t num_sequences = 0;
  for (const std::size_t sample : by_length) {
    const std::int64_t length = lengths[sample];
    auto fit = rooms.lower_bound({length, 0});
    std::pair<std::int64_t, std::int64_t> room{capacity, num_sequences};
    if (fit == rooms.end()) {
      ++num_sequences;
    } else {
      room = *fit;
      rooms.erase(fit);
    }
    sequence_of[sample] = room.second;
    rooms.insert({room.first - length, room.second});
  }
  return sequence_of;
}

std::vector<std::int64_t> pack_in_order(const std::vector<std::int64_t>& lengths, std::int64_t capacity) {
  check_lengths(lengths, capacity);
  std::vector<std::int64_t> sequence_of;
  sequence_of.reserve(lengths.size());
  std::int64_t sequence = 0;
  std::int64_t room = capacity;
  for (const std::int64_t length : lengths) {
    if (length > room) {
      ++sequence;
      room = capacity;
    }
    room -= length;
    sequence_of.push_back(sequence);
  }
  return sequence_of;
}

}  // namespace hetsched
