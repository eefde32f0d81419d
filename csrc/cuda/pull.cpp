// Rows pulled out of peers' memory by the copy engine, each run announced by a counter that a kernel may wait for.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <vector>

#include "cuda/driver.h"
#include "cuda/require.h"
#include "cuda/stream.h"

namespace hetsched::cuda {
namespace {

using torch::stable::Tensor;

void check_tensors(const std::vector<Tensor>& sources, const Tensor& destination, const Tensor& runs,
                   const Tensor& counter) {
  require(destination.is_cuda() && destination.dim() == 2 && destination.is_contiguous(),
          "destination must be contiguous [rows, columns] in a GPU's memory");
  for (const Tensor& source : sources) {
    require(source.is_cuda() && source.dim() == 2 && source.is_contiguous() &&
                source.size(1) == destination.size(1) && source.scalar_type() == destination.scalar_type(),
            "sources must be contiguous [rows, columns] with the destination's columns and dtype");
  }
  require(runs.is_cpu() && runs.dim() == 2 && runs.size(1) == 4 && runs.is_contiguous() &&
              runs.scalar_type() == torch::headeronly::ScalarType::Long,
          "runs must be contiguous int64 [num_runs, 4] on the host");
  require(counter.is_cuda() && counter.numel() == 1 && counter.scalar_type() == torch::headeronly::ScalarType::Int,
          "counter must be one int32 in a GPU's memory");
}

// runs: columns source, its row, destination row, number of rows. After run i the counter is first_value + i.
void op_pull_runs(std::vector<Tensor> sources, Tensor destination, Tensor runs, Tensor counter, int64_t first_value) {
  check_tensors(sources, destination, runs, counter);
  const torch::stable::accelerator::DeviceGuard guard(destination.get_device_index());
  cudaStream_t stream = current_stream(destination.get_device_index());
  auto* count = static_cast<uint32_t*>(counter.mutable_data_ptr());
  auto* to = static_cast<char*>(destination.mutable_data_ptr());
  const int64_t row_bytes = destination.size(1) * static_cast<int64_t>(destination.element_size());
  const auto* run = static_cast<const int64_t*>(runs.const_data_ptr());
  for (int64_t i = 0; i < runs.size(0); ++i, run += 4) {
    const auto [number, source_row, row, num_rows] = std::array{run[0], run[1], run[2], run[3]};
    require(number >= 0 && number < static_cast<int64_t>(sources.size()), "runs[", i, "] names source ", number,
            " of ", sources.size());
    const Tensor& source = sources[number];
    require(num_rows > 0 && source_row >= 0 && row >= 0 && num_rows <= source.size(0) - source_row &&
                num_rows <= destination.size(0) - row,
            "runs[", i, "] copies ", num_rows, " rows from ", source_row, " of ", source.size(0), " to ", row, " of ",
            destination.size(0));
    const auto* from = static_cast<const char*>(source.const_data_ptr());
    check(cudaMemcpyAsync(to + row * row_bytes, from + source_row * row_bytes, num_rows * row_bytes, cudaMemcpyDefault,
                          stream),
          "pull_runs: copy");
    check(stream_write_value(count, static_cast<uint32_t>(first_value + i), stream), "pull_runs: counter");
  }
}

}  // namespace
}  // namespace hetsched::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(hetsched, m) {
  m.def(
      "pull_runs(Tensor[] sources, Tensor(a!) destination, Tensor runs, Tensor(b!) counter, int first_value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hetsched, CUDA, m) { m.impl("pull_runs", TORCH_BOX(&hetsched::cuda::op_pull_runs)); }
