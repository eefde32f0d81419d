// The ops of hetsched::: for runs of rows: checks of arguments, and calls of what does the work.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/put.h"
#include "cuda/require.h"

namespace hetsched::cuda {
namespace {

void check_arguments(const Tensor& source, const Tensor& runs, const std::vector<Tensor>& destinations) {
  check_rows("source", source, source);
  require(runs.dim() == 2 && runs.size(1) == 4 && runs.is_contiguous() &&
              runs.scalar_type() == torch::headeronly::ScalarType::Long,
          "runs must be contiguous int64 [num_runs, 4]");
  require(destinations.size() <= kMaxDestinations, "destinations: ", destinations.size(), " are more than ",
          kMaxDestinations);
  for (size_t i = 0; i < destinations.size(); ++i) {
    check_rows("destinations[" + std::to_string(i) + "]", destinations[i], source);
  }
}

// runs: int64 [num_runs, 4] on the host, columns source row, destination, its row, number of rows.
std::vector<Piece> pieces_of(const Tensor& source, const Tensor& runs, const std::vector<Tensor>& destinations) {
  const int64_t row_bytes = row_bytes_of(source);
  const auto* run = static_cast<const int64_t*>(runs.const_data_ptr());
  const auto* from = static_cast<const char*>(source.const_data_ptr());
  std::vector<Piece> pieces;
  pieces.reserve(runs.size(0));
  for (int64_t i = 0; i < runs.size(0); ++i, run += 4) {
    const auto [source_row, number, row, num_rows] = std::array{run[0], run[1], run[2], run[3]};
    require(number >= 0 && number < static_cast<int64_t>(destinations.size()), "runs[", i, "] names destination ",
            number, " of ", destinations.size());
    const Tensor& to = destinations[number];
    require(num_rows >= 0 && source_row >= 0 && row >= 0 && num_rows <= source.size(0) - source_row &&
                num_rows <= to.size(0) - row,
            "runs[", i, "] copies ", num_rows, " rows from ", source_row, " of ", source.size(0), " to ", row,
            " of ", to.size(0));
    if (num_rows == 0) continue;
    pieces.push_back({from + source_row * row_bytes, static_cast<char*>(to.mutable_data_ptr()) + row * row_bytes,
                      num_rows * row_bytes});
  }
  return pieces;
}

DeviceRuns device_runs_of(const Tensor& source, const Tensor& runs, const std::vector<Tensor>& destinations) {
  require(runs.size(0) <= kMaxDeviceRuns, "runs: ", runs.size(0), " in device memory are more than ",
          kMaxDeviceRuns);
  DeviceRuns list{};
  list.runs = static_cast<const int64_t*>(runs.const_data_ptr());
  list.num_runs = static_cast<int>(runs.size(0));
  list.source = static_cast<const char*>(source.const_data_ptr());
  list.num_source_rows = source.size(0);
  list.row_bytes = row_bytes_of(source);
  list.num_destinations = static_cast<int>(destinations.size());
  for (size_t i = 0; i < destinations.size(); ++i) {
    list.destinations[i] = static_cast<char*>(destinations[i].mutable_data_ptr());
    list.num_destination_rows[i] = destinations[i].size(0);
  }
  return list;
}

void op_pack_and_put(Tensor source, Tensor runs, std::vector<Tensor> destinations, std::vector<Tensor> flags,
                     int64_t value, std::optional<Tensor> ticket, int64_t num_blocks) {
  check_arguments(source, runs, destinations);
  require(num_blocks > 0, "num_blocks is ", num_blocks, "; at least one is needed");
  require(flags.size() <= kMaxDestinations, "flags: ", flags.size(), " are more than ", kMaxDestinations);
  require(ticket.has_value() || flags.empty(), "flags need a ticket");
  Flags to_set{};
  to_set.num_flags = static_cast<int>(flags.size());
  to_set.value = static_cast<uint32_t>(value);
  for (size_t i = 0; i < flags.size(); ++i) to_set.addresses[i] = counter_of("flags", flags[i]);
  uint32_t* count = ticket.has_value() ? counter_of("ticket", *ticket) : nullptr;
  const Grid grid{static_cast<int>(num_blocks), count, current_stream(source)};
  const torch::stable::accelerator::DeviceGuard guard(source.get_device_index());
  if (runs.is_cpu()) {
    check(pack_and_put(pieces_of(source, runs, destinations), to_set, grid), "pack_and_put");
  } else {
    check(pack_and_put(device_runs_of(source, runs, destinations), to_set, grid), "pack_and_put");
  }
}

void op_copy_runs(Tensor source, Tensor runs, std::vector<Tensor> destinations, bool is_batched) {
  check_arguments(source, runs, destinations);
  require(runs.is_cpu(), "runs must be on the host: copy engines are driven from there");
  const auto pieces = pieces_of(source, runs, destinations);
  const torch::stable::accelerator::DeviceGuard guard(source.get_device_index());
  cudaStream_t stream = current_stream(source);
  if (!is_batched) {
    for (const Piece& piece : pieces) {
      check(cudaMemcpyAsync(piece.destination, piece.source, piece.num_bytes, cudaMemcpyDefault, stream), "copy_runs");
    }
    return;
  }
  check(copy_batch(pieces, stream), "copy_runs");
}

}  // namespace
}  // namespace hetsched::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(hetsched, m) {
  m.def(
      "pack_and_put(Tensor source, Tensor runs, Tensor(a!)[] destinations, Tensor(b!)[] flags, int value,"
      " Tensor(c!)? ticket, int num_blocks) -> ()");
  m.def("copy_runs(Tensor source, Tensor runs, Tensor(a!)[] destinations, bool is_batched) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hetsched, CUDA, m) {
  m.impl("pack_and_put", TORCH_BOX(&hetsched::cuda::op_pack_and_put));
  m.impl("copy_runs", TORCH_BOX(&hetsched::cuda::op_copy_runs));
}
