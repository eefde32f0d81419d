#include "core/tokens.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace hetsched {
namespace {

// Boundary i of num_parts equal parts; parts differ by at most one.
std::int64_t boundary(std::int64_t length, std::int64_t i, std::int64_t num_parts) { return length * i / num_parts; }

// A rank's runs in the order of the sequence, neighbors joined.
void tidy(std::vector<TokenRun>& runs) {
  std::sort(runs.begin(), runs.end(), [](const TokenRun& a, const TokenRun& b) { return a.start < b.start; });
  std::size_t kept = 0;
  for (const TokenRun& run : runs) {
    if (kept > 0 && runs[kept - 1].start + runs[kept - 1].num_rows == run.start) {
      runs[kept - 1].num_rows += run.num_rows;
    } else {
      runs[kept++] = run;
    }
  }
  runs.resize(kept);
}

}  // namespace

void check_spread(Spread spread) {
  if (spread.cp < 1 || spread.sp < 1) throw std::invalid_argument("cp, sp: expected at least 1");
}

std::vector<HolderRun> over_sequence_parallel(RunsOfRank runs, std::int64_t sp) {
  std::vector<HolderRun> result;
  for (std::size_t c = 0; c < runs.size(); ++c) {
    tidy(runs[c]);
    std::int64_t total = 0;
    for (const TokenRun& run : runs[c]) total += run.num_rows;
    std::int64_t s = 0;
    std::int64_t row = 0;  // of the cp rank
    for (TokenRun run : runs[c]) {
      while (run.num_rows > 0) {
        while (boundary(total, s + 1, sp) <= row) ++s;
        const std::int64_t count = std::min(run.num_rows, boundary(total, s + 1, sp) - row);
        const std::int64_t rank = static_cast<std::int64_t>(c) * sp + s;
        result.push_back({rank, row - boundary(total, s, sp), run.start, count});
        row += count;
        run = {run.start + count, run.num_rows - count};
      }
    }
  }
  return result;
}

std::vector<HolderRun> spread_zigzag(std::int64_t num_tokens, Spread spread) {
  check_spread(spread);
  if (num_tokens < 0) throw std::invalid_argument("num_tokens: expected at least 0");
  RunsOfRank runs(static_cast<std::size_t>(spread.cp));
  const std::int64_t num_pieces = 2 * spread.cp;
  for (std::int64_t piece = 0; piece < num_pieces; ++piece) {
    const std::int64_t begin = boundary(num_tokens, piece, num_pieces);
    const std::int64_t end = boundary(num_tokens, piece + 1, num_pieces);
    const std::int64_t rank = std::min(piece, num_pieces - 1 - piece);
    if (begin < end) runs[static_cast<std::size_t>(rank)].push_back({begin, end - begin});
  }
  return over_sequence_parallel(std::move(runs), spread.sp);
}

}  // namespace hetsched
