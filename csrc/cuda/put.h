// Rows put into other GPUs' memory: the work lists and launches, free of torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace hetsched::cuda {

// A run of rows as bytes.
struct Piece {
  const char* source;
  char* destination;
  int64_t num_bytes;
};

constexpr int kMaxDestinations = 16;

// Counters that the kernel sets to one value once all rows have been stored.
struct Flags {
  uint32_t* addresses[kMaxDestinations];
  int num_flags;
  uint32_t value;
};

// A list of runs in device memory: int64 [num_runs, 4], columns source row, destination, its row, number of rows.
struct DeviceRuns {
  const int64_t* runs;
  int num_runs;
  const char* source;
  int64_t num_source_rows;
  int64_t row_bytes;
  char* destinations[kMaxDestinations];
  int64_t num_destination_rows[kMaxDestinations];
  int num_destinations;
};

// How much of the GPU a launch takes, and the int32 zero in device memory by which its blocks find the last of them.
struct Grid {
  int num_blocks;
  uint32_t* ticket;
  cudaStream_t stream;
};

// Runs whose rows the host knows; any number of them, in one launch or several.
cudaError_t pack_and_put(const std::vector<Piece>& pieces, const Flags& flags, const Grid& grid);

// Runs that only the device knows. A run outside the source or its destination traps.
cudaError_t pack_and_put(const DeviceRuns& runs, const Flags& flags, const Grid& grid);

// Runs whose rows the host knows, by copy engines and in one call of the driver; not on the default stream.
cudaError_t copy_batch(const std::vector<Piece>& pieces, cudaStream_t stream);

// The longest list that pack_and_put takes from device memory.
constexpr int kMaxDeviceRuns = 4096;

}  // namespace hetsched::cuda
