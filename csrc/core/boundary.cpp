#include "core/boundary.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "core/cells.h"
#include "core/sorting.h"

namespace hetsched {
namespace {

constexpr std::int64_t kMaxRow = std::int64_t{1} << 61;   // sums of two stay within 64 bits
constexpr std::int64_t kMaxRank = std::int64_t{1} << 20;  // counters are kept per rank

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

std::string rows(std::int64_t start, std::int64_t end) {
  return std::to_string(start) + ".." + std::to_string(end - 1);
}

// Where a number stands, e.g. uses[3].num_rows.
struct Place {
  const char* list;
  std::size_t index;
  const char* field;
};

void check_range(const Place& place, std::int64_t value, std::int64_t end) {
  if (value < 0 || value >= end) {
    fail(std::string(place.list) + "[" + std::to_string(place.index) + "]." + place.field + ": expected 0 to " +
         std::to_string(end - 1) + ", got " + std::to_string(value));
  }
}

void check_numbers(const Boundary& boundary) {
  for (std::size_t i = 0; i < boundary.uses.size(); ++i) {
    check_range({"uses", i, "use_start"}, boundary.uses[i].use_start, kMaxRow);
    check_range({"uses", i, "produced_start"}, boundary.uses[i].produced_start, kMaxRow);
    check_range({"uses", i, "num_rows"}, boundary.uses[i].num_rows, kMaxRow);
  }
  const auto num_hosts = static_cast<std::int64_t>(boundary.host_of.size());
  const std::int64_t num_ranks = num_hosts == 0 ? kMaxRank : num_hosts;
  const auto check_runs = [&](const char* list, const std::vector<HolderRun>& runs) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      check_range({list, i, "rank"}, runs[i].rank, num_ranks);
      check_range({list, i, "row"}, runs[i].row, kMaxRow);
      check_range({list, i, "start"}, runs[i].start, kMaxRow);
      check_range({list, i, "num_rows"}, runs[i].num_rows, kMaxRow);
    }
  };
  check_runs("producers", boundary.producers);
  check_runs("consumers", boundary.consumers);
}

// Calls report(rows) if two of the spans, ascending by start, overlap.
template <typename Report>
void check_disjoint(const std::vector<Span>& spans, Report report) {
  std::int64_t end = 0;
  for (const Span& span : spans) {
    if (span.num_rows == 0) continue;
    if (span.start < end) report(rows(span.start, std::min(end, span.end())));
    end = span.end();
  }
}

// `runs` are ascending by start, so those of one rank are too.
void check_holders(const std::string& side, const std::string& axis, const std::vector<HolderRun>& runs) {
  const auto ranks = group_by(runs.begin(), runs.end(), [](const HolderRun& run) { return run.rank; });
  std::vector<Span> held, local;
  for (std::size_t rank = 0; rank + 1 < ranks.starts.size(); ++rank) {
    held.clear();
    local.clear();
    for (std::size_t i = ranks.starts[rank]; i < ranks.starts[rank + 1]; ++i) {
      const HolderRun& run = ranks.items[i];
      held.push_back({run.start, run.num_rows});
      local.push_back({run.row, run.num_rows});
    }
    check_disjoint(held, [&](const std::string& where) {
      fail(side + ": rank " + std::to_string(rank) + " holds " + axis + " " + where + " twice");
    });
    sort_unless_sorted(local.begin(), local.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
    check_disjoint(local, [&](const std::string& where) {
      fail(side + ": rank " + std::to_string(rank) + " keeps two runs in its local rows " + where);
    });
  }
}

// The rows that are in some span; spans ascending by start.
std::vector<Span> joined(const std::vector<Span>& spans) {
  std::vector<Span> result;
  for (const Span& span : spans) {
    if (span.num_rows == 0) continue;
    if (!result.empty() && span.start <= result.back().end()) {
      result.back().num_rows = std::max(result.back().end(), span.end()) - result.back().start;
    } else {
      result.push_back(span);
    }
  }
  return result;
}

// Calls report(rows) if rows of `span` are in none of `covered`, which are joined.
template <typename Report>
void check_covered(const std::vector<Span>& covered, Span span, Report report) {
  if (span.num_rows == 0) return;
  const auto after = std::upper_bound(covered.begin(), covered.end(), span.start,
                                      [](std::int64_t start, const Span& other) { return start < other.start; });
  const std::int64_t end = after == covered.begin() ? span.start : std::max(span.start, (after - 1)->end());
  if (end < span.end()) report(rows(end, after == covered.end() ? span.end() : std::min(span.end(), after->start)));
}

template <typename Run, typename SpanOf>
std::vector<Span> spans_of(const std::vector<Run>& runs, SpanOf span_of) {
  std::vector<Span> spans;
  spans.reserve(runs.size());
  for (const Run& run : runs) spans.push_back(span_of(run));
  return spans;
}

}  // namespace

Boundary sorted_and_checked(Boundary boundary) {
  check_numbers(boundary);
  auto& [uses, producers, consumers, host_of] = boundary;
  sort_unless_sorted(uses.begin(), uses.end(),
                     [](const UseRun& a, const UseRun& b) { return a.use_start < b.use_start; });
  const auto is_before = [](const HolderRun& a, const HolderRun& b) {
    return std::tie(a.start, a.rank) < std::tie(b.start, b.rank);
  };
  sort_unless_sorted(producers.begin(), producers.end(), is_before);
  sort_unless_sorted(consumers.begin(), consumers.end(), is_before);

  const auto used = spans_of(uses, [](const UseRun& use) { return Span{use.use_start, use.num_rows}; });
  check_disjoint(used, [](const std::string& where) { fail("uses: use positions " + where + " are in two runs"); });
  check_holders("producers", "produced rows", producers);
  check_holders("consumers", "use positions", consumers);

  const auto produced = joined(spans_of(producers, [](const HolderRun& run) { return Span{run.start, run.num_rows}; }));
  for (const UseRun& use : uses) {
    check_covered(produced, {use.produced_start, use.num_rows}, [](const std::string& where) {
      fail("uses: produced rows " + where + " are used, but no producer holds them");
    });
  }
  const auto positions = joined(used);
  for (const HolderRun& run : consumers) {
    check_covered(positions, {run.start, run.num_rows}, [&](const std::string& where) {
      fail("consumers: rank " + std::to_string(run.rank) + " holds use positions " + where +
           ", which are in no use run");
    });
  }
  return boundary;
}

}  // namespace hetsched
