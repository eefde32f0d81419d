// Messages put into a room in a peer's memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace hetsched::cuda {

// A run of a message's rows: its first row, its first row in the room, and how many there are.
struct Run {
  int64_t row;
  int64_t to_row;
  int64_t num_rows;
};

struct Message {
  const char* rows;
  int64_t num_rows;
  int64_t row_bytes;
  std::vector<Run> runs;
  char* room;  // which rows fill from its start
  int64_t room_bytes;
  uint32_t* arrived;
  uint32_t number;     // what arrived becomes
  uint32_t* returned;  // null if the room need not be waited for
  uint32_t awaited;    // what returned has to reach
  uint32_t* ticket;    // of the stream, see Grid
  int num_blocks;      // of the kernel that stores the rows; 0: copy engines do
  cudaStream_t stream;
  cudaEvent_t done;  // recorded behind it; null for none
};

// Waits until the room is free, stores the rows where they belong and counts them, after all that the stream here was
// given so far. Throws what is wrong with a run, or what CUDA says.
void put_message(const Message& message, cudaStream_t here, int device);

}  // namespace hetsched::cuda
