// Messages put into a room in a peer's memory: wait until it is free, store the rows where they belong, count them.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/driver.h"
#include "cuda/put.h"
#include "cuda/require.h"

namespace hetsched::cuda {
namespace {

// triples: row of the source, row of the room, number of rows. The room is bytes, which rows fill from its start.
std::vector<Piece> pieces_of(const Tensor& rows, const std::vector<int64_t>& triples, const Tensor& room) {
  check_rows("rows", rows, rows);
  require(room.is_cuda() && room.dim() == 1 && room.is_contiguous() &&
              room.scalar_type() == torch::headeronly::ScalarType::Byte,
          "room must be contiguous bytes in a GPU's memory");
  require(triples.size() % 3 == 0, "pieces must be triples: row, row of the room, number of rows");
  const int64_t row_bytes = row_bytes_of(rows), room_rows = row_bytes == 0 ? 0 : room.size(0) / row_bytes;
  const auto* from = static_cast<const char*>(rows.const_data_ptr());
  auto* to = static_cast<char*>(room.mutable_data_ptr());
  std::vector<Piece> pieces;
  pieces.reserve(triples.size() / 3);
  for (size_t i = 0; i < triples.size(); i += 3) {
    const int64_t row = triples[i], to_row = triples[i + 1], count = triples[i + 2];
    require(count > 0 && row >= 0 && to_row >= 0 && count <= rows.size(0) - row && count <= room_rows - to_row,
            "pieces[", i / 3, "] puts ", count, " rows from ", row, " of ", rows.size(0), " to ", to_row, " of ",
            room_rows);
    pieces.push_back({from + row * row_bytes, to + to_row * row_bytes, count * row_bytes});
  }
  return pieces;
}

// An event of this thread and the current device: a wait for it holds what it recorded when the wait was enqueued.
cudaEvent_t reused_event(int device) {
  static thread_local std::vector<cudaEvent_t> events;
  if (events.size() <= static_cast<size_t>(device)) events.resize(device + 1, nullptr);
  if (events[device] == nullptr) {
    check(cudaEventCreateWithFlags(&events[device], cudaEventDisableTiming), "put_message: event");
  }
  return events[device];
}

void op_put_message(Tensor rows, std::vector<int64_t> pieces, Tensor room, Tensor arrived, int64_t number,
                    std::optional<Tensor> returned, int64_t awaited, Tensor ticket, int64_t num_blocks,
                    int64_t on_stream) {
  const std::vector<Piece> list = pieces_of(rows, pieces, room);
  uint32_t* count = counter_of("arrived", arrived);
  uint32_t* blocks_done = counter_of("ticket", ticket);
  const int device = rows.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  cudaStream_t here = current_stream(rows), stream = here;
  if (on_stream != 0) stream = reinterpret_cast<cudaStream_t>(on_stream);
  // The room first: mostly it is free long before the rows are made, and this wait is then over as well.
  if (returned.has_value()) {
    uint32_t* rooms = counter_of("returned", *returned);
    check(stream_wait_value(rooms, static_cast<uint32_t>(awaited), stream), "put_message: room");
  }
  if (stream != here) {
    cudaEvent_t made = reused_event(device);
    check(cudaEventRecord(made, here), "put_message: rows");
    check(cudaStreamWaitEvent(stream, made, 0), "put_message: rows");
  }
  const auto value = static_cast<uint32_t>(number);
  if (num_blocks > 0 && !list.empty()) {
    const Grid grid{static_cast<int>(num_blocks), blocks_done, stream};
    check(pack_and_put(list, Flags{{count}, 1, value}, grid), "put_message");
    return;
  }
  check(copy_batch(list, stream), "put_message");
  check(stream_write_value(count, value, stream), "put_message: count");
}

}  // namespace
}  // namespace hetsched::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(hetsched, m) {
  m.def(
      "put_message(Tensor rows, int[] pieces, Tensor(a!) room, Tensor(b!) arrived, int number, Tensor? returned,"
      " int awaited, Tensor(c!) ticket, int num_blocks, int on_stream) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hetsched, CUDA, m) { m.impl("put_message", TORCH_BOX(&hetsched::cuda::op_put_message)); }
