// What happens next, of a fixed number of things that may.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace hetsched {

using Time = std::int64_t;  // nanoseconds

constexpr Time kNever = std::numeric_limits<Time>::max();

// The next time of each of a fixed number of events, and the earliest of them; ties go to the smaller index.
class Agenda {
 public:
  explicit Agenda(std::int32_t num_events) {
    while (width_ < num_events) width_ *= 2;
    time_.assign(width_, kNever);
    winner_.resize(2 * width_);
    for (std::int32_t i = 0; i < width_; ++i) winner_[width_ + i] = i;
    for (std::int32_t node = width_ - 1; node > 0; --node) winner_[node] = winner_[2 * node];
  }

  std::int32_t first() const { return winner_[1]; }
  Time time_of(std::int32_t event) const { return time_[event]; }

  void set(std::int32_t event, Time time) {
    time_[event] = time;
    for (std::int32_t node = (width_ + event) / 2; node > 0; node /= 2) {
      const std::int32_t left = winner_[2 * node], right = winner_[2 * node + 1];
      const std::int32_t winner = time_[left] <= time_[right] ? left : right;
      if (winner == winner_[node] && winner != event) return;
      winner_[node] = winner;
    }
  }

 private:
  std::int32_t width_ = 1;
  std::vector<Time> time_;
  std::vector<std::int32_t> winner_;
};

}  // namespace hetsched
