// Many copies given to the driver at once.
#include "cuda/put.h"

namespace hetsched::cuda {

cudaError_t copy_batch(const std::vector<Piece>& pieces, cudaStream_t stream) {
  if (pieces.empty()) return cudaSuccess;
  if (pieces.size() == 1) {
    const Piece& piece = pieces.front();
    return cudaMemcpyAsync(piece.destination, piece.source, piece.num_bytes, cudaMemcpyDefault, stream);
  }
  std::vector<const void*> from;
  std::vector<void*> to;
  std::vector<size_t> num_bytes;
  for (const Piece& piece : pieces) {
    from.push_back(piece.source);
    to.push_back(piece.destination);
    num_bytes.push_back(static_cast<size_t>(piece.num_bytes));
  }
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  size_t first = 0;
  return cudaMemcpyBatchAsync(to.data(), from.data(), num_bytes.data(), pieces.size(), &attributes, &first, 1, stream);
}

}  // namespace hetsched::cuda
