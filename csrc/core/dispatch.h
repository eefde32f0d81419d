// The dispatch planner of context parallelism: work and tokens of packed documents leveled over the ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "core/boundary.h"
#include "core/tokens.h"

namespace hetsched {

// Work of rows [begin, end) of a document under a causal mask: quadratic * (end^2 - begin^2) + linear * (end - begin).
struct DocumentCost {
  std::int64_t quadratic;
  std::int64_t linear;
};

// The runs that each rank keeps. Documents stay whole on one cp rank, the costliest first on the rank with the least
// work so far, but for the longest ones: as few of those with at least `shortest_cut` tokens as level work and tokens
// are cut, nested: the first ranks have the outermost two pieces. Equal needs give zigzag pieces; the longest document's
// pieces are as unequal as levels what all others left.
std::vector<HolderRun> plan_tokens(const std::vector<std::int64_t>& cu_seqlens, Spread spread,
                                   std::int64_t shortest_cut, DocumentCost cost);

}  // namespace hetsched
