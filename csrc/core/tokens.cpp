#include "core/tokens.h"

#include <algorithm>
#include <stdexcept>

#include "core/assign.h"

namespace hetsched {
namespace {

struct Run {
  std::int64_t start;
  std::int64_t num_rows;
};

using RunsOfRank = std::vector<std::vector<Run>>;

void check(Spread spread) {
  if (spread.cp < 1 || spread.sp < 1) throw std::invalid_argument("cp, sp: expected at least 1");
}

// Boundary i of num_parts equal parts; parts differ by at most one.
std::int64_t boundary(std::int64_t length, std::int64_t i, std::int64_t num_parts) { return length * i / num_parts; }

void add_zigzag(RunsOfRank& runs, std::int64_t start, std::int64_t length) {
  const auto cp = static_cast<std::int64_t>(runs.size());
  for (std::int64_t piece = 0; piece < 2 * cp; ++piece) {
    const std::int64_t begin = boundary(length, piece, 2 * cp);
    const std::int64_t end = boundary(length, piece + 1, 2 * cp);
    if (begin == end) continue;
    const std::int64_t rank = std::min(piece, 2 * cp - 1 - piece);
    runs[static_cast<std::size_t>(rank)].push_back({start + begin, end - begin});
  }
}

// A rank's runs in the order of the sequence, neighbors joined.
void tidy(std::vector<Run>& runs) {
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.start < b.start; });
  std::size_t kept = 0;
  for (const Run& run : runs) {
    if (kept > 0 && runs[kept - 1].start + runs[kept - 1].num_rows == run.start) {
      runs[kept - 1].num_rows += run.num_rows;
    } else {
      runs[kept++] = run;
    }
  }
  runs.resize(kept);
}

// Cuts each cp rank's rows into equal runs over its sp ranks.
std::vector<HolderRun> over_sequence_parallel(RunsOfRank& runs, std::int64_t sp) {
  std::vector<HolderRun> result;
  for (std::size_t c = 0; c < runs.size(); ++c) {
    tidy(runs[c]);
    std::int64_t total = 0;
    for (const Run& run : runs[c]) total += run.num_rows;
    std::int64_t s = 0;
    std::int64_t row = 0;  // of the cp rank
    for (Run run : runs[c]) {
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

}  // namespace

std::vector<HolderRun> spread_zigzag(std::int64_t num_tokens, Spread spread) {
  check(spread);
  if (num_tokens < 0) throw std::invalid_argument("num_tokens: expected at least 0");
  RunsOfRank runs(static_cast<std::size_t>(spread.cp));
  add_zigzag(runs, 0, num_tokens);
  return over_sequence_parallel(runs, spread.sp);
}

std::vector<HolderRun> spread_documents(const std::vector<std::int64_t>& cu_seqlens, Spread spread,
                                        std::int64_t shortest_cut, DocumentCost cost) {
  check(spread);
  if (cu_seqlens.empty() || cu_seqlens[0] != 0 || !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end())) {
    throw std::invalid_argument("cu_seqlens: expected to start at 0 and never to fall");
  }
  RunsOfRank runs(static_cast<std::size_t>(spread.cp));
  std::vector<Run> whole;
  std::vector<std::int64_t> costs;
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const std::int64_t start = cu_seqlens[i];
    const std::int64_t length = cu_seqlens[i + 1] - start;
    if (length >= shortest_cut) {
      add_zigzag(runs, start, length);
    } else if (length > 0) {
      whole.push_back({start, length});
      costs.push_back(cost.quadratic * length * length + cost.linear * length);
    }
  }
  // Zigzag pieces cost every rank the same, so only whole documents are levelled.
  const std::vector<std::int64_t> loads(static_cast<std::size_t>(spread.cp), 0);
  const std::vector<std::int64_t> rank_of = assign_longest_first(costs, loads);
  for (std::size_t i = 0; i < whole.size(); ++i) runs[static_cast<std::size_t>(rank_of[i])].push_back(whole[i]);
  return over_sequence_parallel(runs, spread.sp);
}

}  // namespace hetsched
