#include "cuda/message.h"

#include "cuda/driver.h"
#include "cuda/put.h"
#include "cuda/require.h"

namespace hetsched::cuda {
namespace {

std::vector<Piece> pieces_of(const Message& message) {
  const int64_t room_rows = message.row_bytes == 0 ? 0 : message.room_bytes / message.row_bytes;
  std::vector<Piece> pieces;
  pieces.reserve(message.runs.size());
  for (const Run& run : message.runs) {
    require(run.num_rows > 0 && run.row >= 0 && run.to_row >= 0 && run.num_rows <= message.num_rows - run.row &&
                run.num_rows <= room_rows - run.to_row,
            "pieces[", pieces.size(), "] puts ", run.num_rows, " rows from ", run.row, " of ", message.num_rows,
            " to ", run.to_row, " of ", room_rows);
    pieces.push_back({message.rows + run.row * message.row_bytes, message.room + run.to_row * message.row_bytes,
                      run.num_rows * message.row_bytes});
  }
  return pieces;
}

// An event of this thread and device: a wait for it holds what it recorded when the wait was enqueued.
cudaEvent_t reused_event(int device) {
  static thread_local std::vector<cudaEvent_t> events;
  if (events.size() <= static_cast<size_t>(device)) events.resize(device + 1, nullptr);
  if (events[device] == nullptr) {
    check(cudaEventCreateWithFlags(&events[device], cudaEventDisableTiming), "put_message: event");
  }
  return events[device];
}

void store(const Message& message, const std::vector<Piece>& pieces) {
  if (message.num_blocks > 0 && !pieces.empty()) {
    const Grid grid{message.num_blocks, message.ticket, message.stream};
    check(pack_and_put(pieces, Flags{{message.arrived}, 1, message.number}, grid), "put_message");
    return;
  }
  check(copy_batch(pieces, message.stream), "put_message");
  check(stream_write_value(message.arrived, message.number, message.stream), "put_message: count");
}

}  // namespace

void put_message(const Message& message, cudaStream_t here, int device) {
  const std::vector<Piece> pieces = pieces_of(message);
  // The room first: mostly it is free long before the rows are made, and this wait is then over as well.
  if (message.returned != nullptr) {
    check(stream_wait_value(message.returned, message.awaited, message.stream), "put_message: room");
  }
  if (message.stream != here) {
    cudaEvent_t made = reused_event(device);
    check(cudaEventRecord(made, here), "put_message: rows");
    check(cudaStreamWaitEvent(message.stream, made, 0), "put_message: rows");
  }
  store(message, pieces);
  if (message.done != nullptr) check(cudaEventRecord(message.done, message.stream), "put_message: done");
}

}  // namespace hetsched::cuda
