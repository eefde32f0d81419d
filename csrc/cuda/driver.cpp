#include "cuda/driver.h"

#include <cudaTypedefs.h>

namespace hetsched::cuda {
namespace {

// The driver is asked at run time: linking it would need a GPU's driver where this is compiled.
template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const auto error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(function) : nullptr;
}

template <class Function>
cudaError_t call(Function function, uint32_t* address, uint32_t value, unsigned flags, cudaStream_t stream) {
  if (function == nullptr) return cudaErrorSymbolNotFound;
  const auto result = function(stream, reinterpret_cast<CUdeviceptr>(address), value, flags);
  return result == CUDA_SUCCESS ? cudaSuccess : static_cast<cudaError_t>(result);
}

}  // namespace

cudaError_t stream_write_value(uint32_t* address, uint32_t value, cudaStream_t stream) {
  static const auto function = driver_function<PFN_cuStreamWriteValue32_v11070>("cuStreamWriteValue32");
  return call(function, address, value, CU_STREAM_WRITE_VALUE_DEFAULT, stream);
}

cudaError_t stream_wait_value(uint32_t* address, uint32_t value, cudaStream_t stream) {
  static const auto function = driver_function<PFN_cuStreamWaitValue32_v11070>("cuStreamWaitValue32");
  return call(function, address, value, CU_STREAM_WAIT_VALUE_GEQ, stream);
}

}  // namespace hetsched::cuda
