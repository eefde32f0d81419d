// The stream on which torch works now.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "cuda/require.h"

// Declared by the shim only where CUDA's headers are torch's own; every CUDA torch has it.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace hetsched::cuda {

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  require(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, "torch has no current stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace hetsched::cuda
