// A fixed sequence of numbers, the same everywhere (splitmix64; Steele et al. 2014).
#pragma once

#include <cstdint>

namespace hetsched {

class Random {
 public:
  std::int32_t below(std::int32_t bound) {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<std::int32_t>((z ^ (z >> 31)) % static_cast<std::uint64_t>(bound));
  }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace hetsched
