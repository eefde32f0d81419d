// What the ops of hetsched::: share: torch's tensors and stream made into plain pointers, and refusals of wrong ones.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "cuda/put.h"
#include "cuda/require.h"
#include "cuda/stream.h"

namespace hetsched::cuda {

using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& tensor) { return current_stream(tensor.get_device_index()); }

inline int64_t row_bytes_of(const Tensor& rows) { return rows.size(1) * static_cast<int64_t>(rows.element_size()); }

inline void check_rows(const std::string& name, const Tensor& rows, const Tensor& like) {
  require(rows.dim() == 2 && rows.is_contiguous(), name, " must be contiguous [rows, hidden]");
  require(rows.is_cuda() && rows.get_device_index() == like.get_device_index(), name,
          " must be memory of the source's GPU, or of a peer mapped there");
  require(rows.size(1) == like.size(1) && rows.scalar_type() == like.scalar_type(), name,
          " has hidden size ", rows.size(1), " or a dtype other than the source's, whose hidden size is ",
          like.size(1));
}

inline uint32_t* counter_of(const std::string& name, const Tensor& counter) {
  require(counter.is_cuda() && counter.numel() == 1 &&
              counter.scalar_type() == torch::headeronly::ScalarType::Int,
          name, " must be one int32 in a GPU's memory");
  return static_cast<uint32_t*>(counter.mutable_data_ptr());
}

}  // namespace hetsched::cuda
