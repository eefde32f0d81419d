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

// Throws std::invalid_argument unless both are at least 1.
void check_spread(Spread spread);

// Tokens start .. start + num_rows - 1 of the packed sequence.
struct TokenRun {
  std::int64_t start;
  std::int64_t num_rows;
};

using RunsOfRank = std::vector<std::vector<TokenRun>>;

// The runs of each cp rank as a map of tokens: in the order of the sequence, neighbors joined, and cut into equal runs
// over `sp` ranks each. Runs come by rank, then local row.
std::vector<HolderRun> over_sequence_parallel(RunsOfRank runs, std::int64_t sp);

// The runs that each rank keeps when the whole sequence is cut into 2 * cp equal pieces, of which rank r has
// pieces r and 2 * cp - 1 - r. Pieces differ by at most one token. Runs come by rank, then local row.
std::vector<HolderRun> spread_zigzag(std::int64_t num_tokens, Spread spread);

}  // namespace hetsched
