#include "core/route_checks.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include "core/cells.h"

namespace hetsched {
namespace {

constexpr std::int64_t kMaxRow = std::int64_t{1} << 61;   // sums of two stay within 64 bits
constexpr std::int64_t kMaxRank = std::int64_t{1} << 24;  // counters are kept per rank

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

// One run of rows with a label (a rank, or 0 where there are none); a label's runs must be disjoint.
struct Labeled {
  std::int64_t label;
  Span span;
};

template <typename Report>
void check_disjoint(std::vector<Labeled> runs, Report report) {
  runs.erase(std::remove_if(runs.begin(), runs.end(), [](const Labeled& r) { return r.span.num_rows == 0; }),
             runs.end());
  std::sort(runs.begin(), runs.end(), [](const Labeled& a, const Labeled& b) {
    return std::tie(a.label, a.span.start) < std::tie(b.label, b.span.start);
  });
  for (std::size_t i = 1; i < runs.size(); ++i) {
    if (runs[i].label == runs[i - 1].label && runs[i].span.start < runs[i - 1].span.end()) {
      report(runs[i].label, rows(runs[i].span.start, std::min(runs[i].span.end(), runs[i - 1].span.end())));
    }
  }
}

// Calls report(rows) for the first rows of `span` that none of the spans behind `cells` covers.
template <typename Report>
void check_covered(const Cells& cells, Span span, Report report) {
  std::int64_t covered = span.start;
  cells.for_each_piece(span, [&](std::size_t cell, Span piece) {
    if (cells.members(cell).empty()) return;
    if (piece.start > covered) report(rows(covered, piece.start));
    covered = piece.start + piece.num_rows;
  });
  if (covered < span.end()) report(rows(covered, span.end()));
}

void check_holders(const char* side, const std::string& axis, const std::vector<HolderRun>& runs,
                   const std::vector<std::int64_t>& host_of) {
  const std::int64_t num_ranks = host_of.empty() ? kMaxRank : static_cast<std::int64_t>(host_of.size());
  std::vector<Labeled> held, local;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    check_range({side, i, "rank"}, runs[i].rank, num_ranks);
    check_range({side, i, "row"}, runs[i].row, kMaxRow);
    check_range({side, i, "start"}, runs[i].start, kMaxRow);
    check_range({side, i, "num_rows"}, runs[i].num_rows, kMaxRow);
    held.push_back({runs[i].rank, {runs[i].start, runs[i].num_rows}});
    local.push_back({runs[i].rank, {runs[i].row, runs[i].num_rows}});
  }
  check_disjoint(std::move(held), [&](std::int64_t rank, const std::string& where) {
    fail(std::string(side) + ": rank " + std::to_string(rank) + " holds " + axis + " " + where + " twice");
  });
  check_disjoint(std::move(local), [&](std::int64_t rank, const std::string& where) {
    fail(std::string(side) + ": rank " + std::to_string(rank) + " keeps two runs in its local rows " + where);
  });
}

std::vector<Span> spans_of(const std::vector<HolderRun>& runs) {
  std::vector<Span> spans;
  for (const HolderRun& run : runs) spans.push_back({run.start, run.num_rows});
  return spans;
}

}  // namespace

void check_boundary(const Boundary& boundary) {
  std::vector<Labeled> positions;
  std::vector<Span> use_spans;
  for (std::size_t i = 0; i < boundary.uses.size(); ++i) {
    const UseRun& use = boundary.uses[i];
    check_range({"uses", i, "use_start"}, use.use_start, kMaxRow);
    check_range({"uses", i, "produced_start"}, use.produced_start, kMaxRow);
    check_range({"uses", i, "num_rows"}, use.num_rows, kMaxRow);
    use_spans.push_back({use.use_start, use.num_rows});
    positions.push_back({0, use_spans.back()});
  }
  check_disjoint(std::move(positions), [](std::int64_t, const std::string& where) {
    fail("uses: use positions " + where + " are in two runs");
  });
  check_holders("producers", "produced rows", boundary.producers, boundary.host_of);
  check_holders("consumers", "use positions", boundary.consumers, boundary.host_of);

  const Cells produced(spans_of(boundary.producers));
  for (const UseRun& use : boundary.uses) {
    check_covered(produced, {use.produced_start, use.num_rows}, [](const std::string& where) {
      fail("uses: produced rows " + where + " are used, but no producer holds them");
    });
  }
  const Cells used(use_spans);
  for (const HolderRun& run : boundary.consumers) {
    check_covered(used, {run.start, run.num_rows}, [&](const std::string& where) {
      fail("consumers: rank " + std::to_string(run.rank) + " holds use positions " + where + ", which are in no use run");
    });
  }
}

}  // namespace hetsched
