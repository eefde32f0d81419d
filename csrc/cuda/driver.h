// Stream memory operations: a stream writes or waits for a value without an SM and without the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hetsched::cuda {

// Sets *address to value once all earlier work of the stream is done and visible.
cudaError_t stream_write_value(uint32_t* address, uint32_t value, cudaStream_t stream);

// Holds the stream until *address has reached value; counters may wrap around.
cudaError_t stream_wait_value(uint32_t* address, uint32_t value, cudaStream_t stream);

}  // namespace hetsched::cuda
