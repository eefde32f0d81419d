// Messages that travel in parts: a counter says how many have arrived, so that one is taken while the next comes.
//
// A message lies in a slot, its rows one after the other, and at either end in runs of rows. Part i is the slot's rows
// from ends[i - 1] to ends[i]; the counter is first_value + i once it has arrived.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/driver.h"
#include "cuda/put.h"
#include "cuda/require.h"

namespace hetsched::cuda {
namespace {

using Parts = std::vector<std::vector<Piece>>;

// runs: pairs of first row and number of rows.
Parts cut_into_parts(const Tensor& rows, const std::vector<int64_t>& runs, const Tensor& slot,
                     const std::vector<int64_t>& ends, bool is_put) {
  check_rows("rows", rows, rows);
  check_rows("slot", slot, rows);
  const int64_t row_bytes = row_bytes_of(rows);
  auto* at_runs = static_cast<char*>(rows.mutable_data_ptr());
  auto* in_slot = static_cast<char*>(slot.mutable_data_ptr());
  require(!ends.empty() && std::is_sorted(ends.begin(), ends.end()) && ends[0] >= 0 && ends.back() == slot.size(0),
          "ends must ascend to the slot's rows");
  Parts parts(ends.size());
  size_t part = 0;
  int64_t row = 0;
  for (size_t i = 0; i + 1 < runs.size(); i += 2) {
    int64_t first = runs[i], left = runs[i + 1];
    require(first >= 0 && left > 0 && left <= rows.size(0) - first && left <= slot.size(0) - row, "run ", i / 2,
            " has ", left, " rows from ", first, " of ", rows.size(0), ", and the slot ", slot.size(0) - row, " more");
    while (left > 0) {
      while (ends[part] == row) ++part;
      const int64_t count = std::min(left, ends[part] - row);
      char *here = at_runs + first * row_bytes, *there = in_slot + row * row_bytes;
      parts[part].push_back(is_put ? Piece{here, there, count * row_bytes} : Piece{there, here, count * row_bytes});
      first += count, row += count, left -= count;
    }
  }
  require(row == slot.size(0), "the runs have ", row, " rows and the slot has ", slot.size(0));
  return parts;
}

void op_put_parts(Tensor rows, std::vector<int64_t> runs, Tensor slot, std::vector<int64_t> ends, Tensor counter,
                  int64_t first_value, std::optional<Tensor> ticket, int64_t num_blocks) {
  const Parts parts = cut_into_parts(rows, runs, slot, ends, true);
  uint32_t* count = counter_of("counter", counter);
  require(num_blocks == 0 || ticket.has_value(), "a kernel needs a ticket");
  uint32_t* blocks_done = ticket.has_value() ? counter_of("ticket", *ticket) : nullptr;
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  cudaStream_t stream = current_stream(rows);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto value = static_cast<uint32_t>(first_value + static_cast<int64_t>(i));
    if (num_blocks > 0) {
      const Flags flags{{count}, 1, value};
      check(pack_and_put(parts[i], flags, Grid{static_cast<int>(num_blocks), blocks_done, stream}), "put_parts");
    } else {
      check(copy_batch(parts[i], stream), "put_parts");
      check(stream_write_value(count, value, stream), "put_parts");
    }
  }
}

void op_take_parts(Tensor slot, std::vector<int64_t> runs, Tensor rows, std::vector<int64_t> ends, Tensor counter,
                   int64_t first_value, int64_t num_blocks) {
  const Parts parts = cut_into_parts(rows, runs, slot, ends, false);
  uint32_t* count = counter_of("counter", counter);
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  cudaStream_t stream = current_stream(rows);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto value = static_cast<uint32_t>(first_value + static_cast<int64_t>(i));
    check(stream_wait_value(count, value, stream), "take_parts");
    if (num_blocks > 0) {
      check(pack_and_put(parts[i], Flags{}, Grid{static_cast<int>(num_blocks), nullptr, stream}), "take_parts");
    } else {
      check(copy_batch(parts[i], stream), "take_parts");
    }
  }
}

}  // namespace
}  // namespace hetsched::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(hetsched, m) {
  m.def(
      "put_parts(Tensor rows, int[] runs, Tensor(a!) slot, int[] ends, Tensor(b!) counter, int first_value,"
      " Tensor(c!)? ticket, int num_blocks) -> ()");
  m.def(
      "take_parts(Tensor slot, int[] runs, Tensor(a!) rows, int[] ends, Tensor counter, int first_value,"
      " int num_blocks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hetsched, CUDA, m) {
  m.impl("put_parts", TORCH_BOX(&hetsched::cuda::op_put_parts));
  m.impl("take_parts", TORCH_BOX(&hetsched::cuda::op_take_parts));
}
