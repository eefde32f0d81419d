// Refusals of arguments. STD_TORCH_CHECK formats with a string stream, which crashes where the compiler links a copy of
// the C++ library into _cuda.so and torch brings another: the two number a locale's facets differently.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace hetsched::cuda {

template <class Part>
void append(std::string& message, const Part& part) {
  if constexpr (std::is_integral_v<Part>) {
    message += std::to_string(part);
  } else {
    message += part;
  }
}

// Throws what the parts say, one after the other, unless the condition is met; torch makes it a RuntimeError.
template <class... Parts>
void require(bool is_met, const Parts&... parts) {
  if (is_met) return;
  std::string message;
  (append(message, parts), ...);
  throw std::runtime_error(message);
}

inline void check(cudaError_t error, const char* what) {
  require(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace hetsched::cuda
