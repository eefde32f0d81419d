// Which rank keeps which tokens of a packed sequence, under context and sequence parallelism.
#pragma once

#include <cstdint>
#include <vector>

#include "core/boundary.h"

namespace hetsched {

// How a sequence is spread: over `cp` context-parallel ranks, and each one's rows in equal runs over `sp`
// sequence-parallel ones. Rank (c, s) has the number c * sp + s.
struct Spread {
  std::int64_t cp;
  std::int64_t sp;
};

// Work of a document that one rank does alone: quadratic * length^2 + linear * length.
struct DocumentCost {
  std::int64_t quadratic;
  std::int64_t linear;
};

// The runs that each rank keeps when the whole sequence is cut into 2 * cp equal pieces, of which rank r has
// pieces r and 2 * cp - 1 - r. Pieces differ by at most one token. Runs come by rank, then local row.
std::vector<HolderRun> spread_zigzag(std::int64_t num_tokens, Spread spread);

// The same by documents: one of at least `shortest_cut` tokens is cut by itself into 2 * cp pieces, a shorter one stays
// whole on one rank: the costliest first, to the rank with the least work so far; ties go to the smaller index.
std::vector<HolderRun> spread_documents(const std::vector<std::int64_t>& cu_seqlens, Spread spread,
                                        std::int64_t shortest_cut, DocumentCost cost);

}  // namespace hetsched
