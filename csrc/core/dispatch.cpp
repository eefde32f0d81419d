#include "core/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/assign.h"

namespace hetsched {
namespace {

// What one rank holds or lacks. Rows [begin, end) of a document have end^2 - begin^2 pairs: twice those of query and key.
struct Load {
  std::int64_t tokens = 0;
  std::int64_t pairs = 0;
};

using Loads = std::vector<Load>;

struct Plan {
  RunsOfRank runs;
  Loads loads;
};

constexpr std::int64_t kMillion = 1'000'000;
// The busiest rank has at most 1/64 more than its share, in work and in tokens: then no more documents are cut.
constexpr std::int64_t kLevel = kMillion + kMillion / 64;
// What keeps sums of squares, and of work, within 64 bits.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;
constexpr std::int64_t kMostWork = std::int64_t{1} << 62;

// a * b / c, rounded down, for a product of more than 64 bits.
std::int64_t scaled(std::int64_t a, std::int64_t b, std::int64_t c) {
  return static_cast<std::int64_t>(static_cast<__int128>(a) * b / c);
}

std::int64_t pairs_of(std::int64_t begin, std::int64_t end) { return end * end - begin * begin; }

std::int64_t work_of(const Load& load, DocumentCost cost) {
  return cost.quadratic * load.pairs + cost.linear * load.tokens;
}

void hold(Plan& plan, std::size_t rank, const TokenRun& document, std::int64_t begin, std::int64_t end) {
  if (begin == end) return;
  plan.runs[rank].push_back({document.start + begin, end - begin});
  plan.loads[rank].tokens += end - begin;
  plan.loads[rank].pairs += pairs_of(begin, end);
}

// `total` in parts proportional to `wanted`, which has a positive sum; they add up to it.
std::vector<std::int64_t> proportional(std::int64_t total, const std::vector<std::int64_t>& wanted) {
  const std::int64_t sum = std::accumulate(wanted.begin(), wanted.end(), std::int64_t{0});
  std::vector<std::int64_t> parts;
  std::int64_t before = 0;
  std::int64_t given = 0;
  for (std::int64_t part : wanted) {
    before += part;
    const std::int64_t until = scaled(total, before, sum);
    parts.push_back(until - given);
    given = until;
  }
  return parts;
}

// What each rank is to have of a document: the same, or in proportion to what it lacks of its share of everything.
Loads wanted_of(const TokenRun& document, const Loads& lacking, bool is_even) {
  std::vector<std::int64_t> tokens(lacking.size(), 1);
  std::vector<std::int64_t> pairs(lacking.size(), 1);
  for (std::size_t rank = 0; !is_even && rank < lacking.size(); ++rank) {
    tokens[rank] = std::max<std::int64_t>(lacking[rank].tokens, 0);
    pairs[rank] = std::max<std::int64_t>(lacking[rank].pairs, 0);
  }
  tokens = proportional(document.num_rows, tokens);
  pairs = proportional(pairs_of(0, document.num_rows), pairs);
  Loads wanted;
  for (std::size_t rank = 0; rank < lacking.size(); ++rank) wanted.push_back({tokens[rank], pairs[rank]});
  return wanted;
}

// Ranks in the order in which they cut: those that want unusually cheap or dear rows have first choice of the ends, in
// steps of 1/16 of the mean, so that nearly equal needs keep the order of ranks.
std::vector<std::size_t> outermost_first(const Loads& wanted, std::int64_t length) {
  std::vector<std::size_t> order;
  std::vector<std::int64_t> oddity(wanted.size(), 0);
  for (std::size_t rank = 0; rank < wanted.size(); ++rank) {
    const auto [tokens, pairs] = wanted[rank];
    if (tokens == 0) continue;
    oddity[rank] = scaled(std::abs(pairs - tokens * length), 16, tokens * length);
    order.push_back(rank);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return oddity[a] > oddity[b]; });
  return order;
}

// Each rank in turn takes x rows from the front and y from the back of what is left, [a, b), where x + y are its tokens
// and (a + x)^2 - a^2 + b^2 - (b - y)^2 its pairs, as nearly as can be.
void cut(Plan& plan, const TokenRun& document, const Loads& wanted) {
  std::int64_t a = 0;
  std::int64_t b = document.num_rows;
  for (std::size_t rank : outermost_first(wanted, document.num_rows)) {
    const auto [tokens, pairs] = wanted[rank];
    const std::int64_t rest = b - a - tokens;
    std::int64_t x = tokens;
    if (rest > 0) {
      const __int128 surplus = static_cast<__int128>(2 * b - tokens) * tokens - pairs;
      x = surplus <= 0 ? 0 : static_cast<std::int64_t>(std::min<__int128>((surplus + rest) / (2 * rest), tokens));
    }
    hold(plan, rank, document, a, a + x);
    hold(plan, rank, document, b - (tokens - x), b);
    a += x;
    b -= tokens - x;
  }
}

class Planner {
 public:
  Planner(std::vector<TokenRun> longest_first, std::size_t cp, DocumentCost cost)
      : documents_(std::move(longest_first)), cp_(cp), cost_(cost) {
    for (const TokenRun& document : documents_) {
      total_.tokens += document.num_rows;
      total_.pairs += pairs_of(0, document.num_rows);
    }
  }

  // The plan that cuts the longest `num_cut` documents.
  Plan plan(std::size_t num_cut) const {
    Plan result{RunsOfRank(cp_), Loads(cp_)};
    std::vector<std::int64_t> costs;
    for (std::size_t i = num_cut; i < documents_.size(); ++i) {
      const std::int64_t length = documents_[i].num_rows;
      costs.push_back(work_of({length, pairs_of(0, length)}, cost_));
    }
    const auto rank_of = assign_longest_first(costs, std::vector<std::int64_t>(cp_, 0));
    for (std::size_t i = 0; i < rank_of.size(); ++i) {
      const TokenRun& document = documents_[num_cut + i];
      hold(result, static_cast<std::size_t>(rank_of[i]), document, 0, document.num_rows);
    }
    // The longest comes last: it has the most room to level what the others leave.
    for (std::size_t i = num_cut; i-- > 0;) {
      const Loads lacking = lacking_of(result.loads);
      const bool is_even = i > 0 && lacks_even_share(lacking, documents_[i].num_rows);
      cut(result, documents_[i], wanted_of(documents_[i], lacking, is_even));
    }
    return result;
  }

  // Millionths of its share that the busiest rank has, in work or in tokens.
  std::int64_t unevenness(const Plan& plan) const {
    std::int64_t worst = 0;
    const auto cp = static_cast<std::int64_t>(cp_);
    const std::int64_t work = work_of(total_, cost_);
    for (const Load& load : plan.loads) {
      worst = std::max(worst, scaled(load.tokens * cp, kMillion, total_.tokens));
      if (work > 0) worst = std::max(worst, scaled(work_of(load, cost_), kMillion * cp, work));
    }
    return worst;
  }

 private:
  Loads lacking_of(const Loads& held) const {
    Loads lacking(cp_);
    const auto cp = static_cast<std::int64_t>(cp_);
    for (std::int64_t rank = 0; rank < cp; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      const auto share = [&](std::int64_t total) { return scaled(total, rank + 1, cp) - scaled(total, rank, cp); };
      lacking[r] = {share(total_.tokens) - held[r].tokens, share(total_.pairs) - held[r].pairs};
    }
    return lacking;
  }

  bool lacks_even_share(const Loads& lacking, std::int64_t length) const {
    const auto cp = static_cast<std::int64_t>(cp_);
    return std::all_of(lacking.begin(), lacking.end(), [&](const Load& load) {
      return load.tokens > length / cp && load.pairs > pairs_of(0, length) / cp;
    });
  }

  std::vector<TokenRun> documents_;
  std::size_t cp_;
  DocumentCost cost_;
  Load total_;
};

std::vector<TokenRun> documents_of(const std::vector<std::int64_t>& cu_seqlens) {
  if (cu_seqlens.empty() || cu_seqlens[0] != 0 || !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end())) {
    throw std::invalid_argument("cu_seqlens: expected to start at 0 and never to fall");
  }
  if (cu_seqlens.back() > kMostTokens) {
    throw std::invalid_argument("cu_seqlens: expected at most 2^30 tokens, got " + std::to_string(cu_seqlens.back()));
  }
  std::vector<TokenRun> documents;
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    if (cu_seqlens[i + 1] > cu_seqlens[i]) documents.push_back({cu_seqlens[i], cu_seqlens[i + 1] - cu_seqlens[i]});
  }
  std::stable_sort(documents.begin(), documents.end(),
                   [](const TokenRun& a, const TokenRun& b) { return a.num_rows > b.num_rows; });
  return documents;
}

void check_cost(DocumentCost cost, std::int64_t num_tokens) {
  if (cost.quadratic < 0 || cost.linear < 0) throw std::invalid_argument("quadratic, linear: expected at least 0");
  const auto most = static_cast<__int128>(cost.quadratic) * num_tokens * num_tokens +
                    static_cast<__int128>(cost.linear) * num_tokens;
  if (most > kMostWork) throw std::invalid_argument("quadratic, linear: the sequence costs more than 2^62");
}

}  // namespace

std::vector<HolderRun> plan_tokens(const std::vector<std::int64_t>& cu_seqlens, Spread spread,
                                   std::int64_t shortest_cut, DocumentCost cost) {
  check_spread(spread);
  std::vector<TokenRun> documents = documents_of(cu_seqlens);
  check_cost(cost, cu_seqlens.back());
  if (documents.empty()) return {};
  const auto num_long = static_cast<std::size_t>(std::count_if(
      documents.begin(), documents.end(), [&](const TokenRun& document) { return document.num_rows >= shortest_cut; }));
  const Planner planner(std::move(documents), static_cast<std::size_t>(spread.cp), cost);
  Plan best = planner.plan(0);
  std::int64_t least = planner.unevenness(best);
  // The count doubles, so that many documents do not make many tries.
  for (std::size_t tried = 0; least > kLevel && tried < num_long;) {
    tried = std::min(std::max<std::size_t>(2 * tried, 1), num_long);
    Plan plan = planner.plan(tried);
    const std::int64_t unevenness = planner.unevenness(plan);
    if (unevenness >= least) continue;
    least = unevenness;
    best = std::move(plan);
  }
  return over_sequence_parallel(std::move(best.runs), spread.sp);
}

}  // namespace hetsched
