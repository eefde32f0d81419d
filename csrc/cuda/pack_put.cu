// Pack-and-put: gathers runs of rows and stores them straight into peers' memory, then sets the flags.
//
// The runs, one after the other, are one message. It is cut into tiles of equal size, whatever the runs' lengths, and
// blocks take tiles in turn. Each thread has kUnroll loads in flight before its first store.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/put.h"

namespace hetsched::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 4;

template <int kWidth>
struct Word;
template <>
struct Word<16> { using type = uint4; };
template <>
struct Word<8> { using type = uint2; };
template <>
struct Word<4> { using type = uint32_t; };
template <>
struct Word<2> { using type = uint16_t; };
template <>
struct Word<1> { using type = uint8_t; };

// A list that travels in the launch's parameters: no copy precedes the launch, and the host's list is free after it.
template <int kCapacity>
struct HostTable {
  int num_pieces;
  int64_t first_byte[kCapacity + 1];
  const char* source[kCapacity];
  char* destination[kCapacity];

  __device__ void prepare(int64_t*) const {}
  __device__ int size() const { return num_pieces; }
  __device__ int64_t first(const int64_t*, int piece) const { return first_byte[piece]; }
  __device__ const char* from(int piece) const { return source[piece]; }
  __device__ char* to(int piece) const { return destination[piece]; }
};

// A list in device memory: every block sums the runs' lengths for itself.
struct DeviceTable {
  DeviceRuns list;

  __device__ void check(const int64_t* run) const {
    const bool is_known = run[1] >= 0 && run[1] < list.num_destinations && run[3] >= 0;
    if (!is_known || run[0] < 0 || run[0] + run[3] > list.num_source_rows || run[2] < 0 ||
        run[2] + run[3] > list.num_destination_rows[run[1]]) {
      __trap();
    }
  }

  // Inclusive sums within warps, then over the warps, one block's width of runs at a time.
  __device__ void prepare(int64_t* first_byte) const {
    __shared__ int64_t of_warp[kThreads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t before = 0;
    if (threadIdx.x == 0) first_byte[0] = 0;
    __syncthreads();
    for (int start = 0; start < list.num_runs; start += kThreads) {
      const int run = start + threadIdx.x;
      int64_t sum = 0;
      if (run < list.num_runs) {
        check(list.runs + 4 * run);
        sum = list.runs[4 * run + 3] * list.row_bytes;
      }
      for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      if (lane == 31) of_warp[warp] = sum;
      __syncthreads();
      int64_t in_all = 0;
      for (int w = 0; w < kThreads / 32; ++w) {
        if (w < warp) sum += of_warp[w];
        in_all += of_warp[w];
      }
      if (run < list.num_runs) first_byte[run + 1] = before + sum;
      before += in_all;
      __syncthreads();
    }
  }

  __device__ int size() const { return list.num_runs; }
  __device__ int64_t first(const int64_t* first_byte, int run) const { return first_byte[run]; }
  __device__ const char* from(int run) const { return list.source + list.runs[4 * run] * list.row_bytes; }
  __device__ char* to(int run) const {
    return list.destinations[list.runs[4 * run + 1]] + list.runs[4 * run + 2] * list.row_bytes;
  }
};

// The last piece that starts at or before a byte of the message.
template <class Table>
__device__ int find_piece(const Table& table, const int64_t* first_byte, int64_t byte) {
  int low = 0, high = table.size();
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.first(first_byte, middle) <= byte) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// At most a tile of bytes, by all threads of the block.
template <int kWidth>
__device__ void copy_bytes(char* destination, const char* source, int num_bytes) {
  using T = typename Word<kWidth>::type;
  T words[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int byte = (i * kThreads + threadIdx.x) * kWidth;
    if (byte < num_bytes) words[i] = __ldcs(reinterpret_cast<const T*>(source + byte));
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int byte = (i * kThreads + threadIdx.x) * kWidth;
    if (byte < num_bytes) *reinterpret_cast<T*>(destination + byte) = words[i];
  }
}

// The last block to arrive sets the flags. Its fence, and those of the blocks that it counted, order all their stores
// before the flags for whoever waits for them, on any GPU or in a stream.
__device__ void set_flags(const Flags& flags, uint32_t* ticket) {
  if (flags.num_flags == 0) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence_system();
  if (atomicAdd(ticket, 1u) != gridDim.x - 1) return;
  *ticket = 0;
  __threadfence_system();
  for (int i = 0; i < flags.num_flags; ++i) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flags.addresses[i]), "r"(flags.value) : "memory");
  }
}

template <int kWidth, class Table>
__global__ void __launch_bounds__(kThreads)
    pack_and_put_kernel(const __grid_constant__ Table table, const __grid_constant__ Flags flags, uint32_t* ticket) {
  extern __shared__ int64_t first_byte[];
  constexpr int64_t kTile = int64_t{kThreads} * kUnroll * kWidth;
  table.prepare(first_byte);
  const int64_t num_bytes = table.first(first_byte, table.size());
  for (int64_t begin = blockIdx.x * kTile; begin < num_bytes; begin += gridDim.x * kTile) {
    const int64_t end = min(begin + kTile, num_bytes);
    int piece = find_piece(table, first_byte, begin);
    for (int64_t byte = begin; byte < end; ++piece) {
      const int64_t first = table.first(first_byte, piece);
      const int64_t stop = min(end, table.first(first_byte, piece + 1));
      copy_bytes<kWidth>(table.to(piece) + (byte - first), table.from(piece) + (byte - first),
                         static_cast<int>(stop - byte));
      byte = stop;
    }
  }
  set_flags(flags, ticket);
}

// The widest access that every address and length allows.
int width_of(uintptr_t bits) {
  int width = 16;
  while (bits % width != 0) width /= 2;
  return width;
}

template <class Table>
cudaError_t launch(const Table& table, int width, size_t shared_bytes, const Flags& flags, const Grid& grid) {
  const auto run = [&](auto* kernel) {
    kernel<<<grid.num_blocks, kThreads, shared_bytes, grid.stream>>>(table, flags, grid.ticket);
    return cudaGetLastError();
  };
  switch (width) {
    case 16: return run(&pack_and_put_kernel<16, Table>);
    case 8: return run(&pack_and_put_kernel<8, Table>);
    case 4: return run(&pack_and_put_kernel<4, Table>);
    case 2: return run(&pack_and_put_kernel<2, Table>);
    default: return run(&pack_and_put_kernel<1, Table>);
  }
}

template <int kCapacity>
cudaError_t launch_some(const Piece* pieces, int num_pieces, const Flags& flags, Grid grid) {
  HostTable<kCapacity> table;
  table.num_pieces = num_pieces;
  uintptr_t bits = 0;
  int64_t num_bytes = 0;
  for (int i = 0; i < num_pieces; ++i) {
    const Piece& piece = pieces[i];
    table.first_byte[i] = num_bytes;
    table.source[i] = piece.source;
    table.destination[i] = piece.destination;
    num_bytes += piece.num_bytes;
    bits |= reinterpret_cast<uintptr_t>(piece.source) | reinterpret_cast<uintptr_t>(piece.destination) |
            static_cast<uintptr_t>(piece.num_bytes);
  }
  table.first_byte[num_pieces] = num_bytes;
  const int width = width_of(bits);
  const int64_t tile = int64_t{kThreads} * kUnroll * width;
  grid.num_blocks = static_cast<int>(std::clamp<int64_t>((num_bytes + tile - 1) / tile, 1, grid.num_blocks));
  return launch(table, width, 0, flags, grid);
}

}  // namespace

cudaError_t pack_and_put(const std::vector<Piece>& pieces, const Flags& flags, const Grid& grid) {
  // A launch takes at most 32,764 bytes of parameters; a short list is cheaper to send.
  constexpr int kShort = 128, kLong = 1280;
  const Flags no_flags{};
  int begin = 0;
  const int num_pieces = static_cast<int>(pieces.size());
  do {
    const int count = std::min(num_pieces - begin, kLong);
    const Flags& now = begin + count == num_pieces ? flags : no_flags;
    const cudaError_t error = count <= kShort ? launch_some<kShort>(pieces.data() + begin, count, now, grid)
                                              : launch_some<kLong>(pieces.data() + begin, count, now, grid);
    if (error != cudaSuccess) return error;
    begin += count;
  } while (begin < num_pieces);
  return cudaSuccess;
}

cudaError_t pack_and_put(const DeviceRuns& runs, const Flags& flags, const Grid& grid) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(runs.source) | static_cast<uintptr_t>(runs.row_bytes);
  for (int i = 0; i < runs.num_destinations; ++i) bits |= reinterpret_cast<uintptr_t>(runs.destinations[i]);
  const size_t shared_bytes = sizeof(int64_t) * (runs.num_runs + 1);
  return launch(DeviceTable{runs}, width_of(bits), shared_bytes, flags, grid);
}

}  // namespace hetsched::cuda
