// Waits for counters in this GPU's memory, on a stream and by a warp of one SM.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hetsched::cuda {

constexpr int kMaxCounts = 32;

// Counters, and what each has to reach; they may wrap around.
struct Counts {
  const uint32_t* addresses[kMaxCounts];
  uint32_t values[kMaxCounts];
  int num_counts;
};

// Holds the stream until all counters are there; what was written before they were counted is then visible.
cudaError_t wait_for_counts(const Counts& counts, cudaStream_t stream);

}  // namespace hetsched::cuda
