#include "core/routes.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/cells.h"
#include "core/sorting.h"

namespace hetsched {
namespace {

// A use run seen from the sending and from the receiving side.
struct Link {
  std::int64_t send_start;
  std::int64_t recv_start;
  std::int64_t use_start;
  std::int64_t num_rows;
};

// The part of a link whose rows all have the same senders, those of `cell`.
struct Piece {
  Span received;
  std::int64_t send_start;
  std::int64_t use_start;
  std::size_t cell;
};

// A segment and how many others reach its rows before it.
struct Placed {
  Segment segment;
  std::int64_t layer;
};

template <typename Run, typename SpanOf>
Cells cells_of(const std::vector<Run>& runs, SpanOf span_of) {
  std::vector<Span> spans;
  spans.reserve(runs.size());
  for (const Run& run : runs) spans.push_back(span_of(run));
  return Cells(spans);
}

Span span_of(const HolderRun& run) { return {run.start, run.num_rows}; }

bool is_continued(const Segment& last, const Segment& next) {
  return last.src_rank == next.src_rank && last.src_row + last.num_rows == next.src_row &&
         last.dst_row + last.num_rows == next.dst_row;
}

// Adds the segments of one destination in the order of the sums, then by row; neighbors are joined.
template <typename Iterator>
void add_merged(Iterator begin, Iterator end, std::vector<Segment>& segments) {
  // A segment of a layer has others in all layers below, so there are no more layers than segments.
  auto layers = group_by(begin, end, [](const Placed& p) { return p.layer; });
  for (std::size_t layer = 0; layer + 1 < layers.starts.size(); ++layer) {
    const auto first = layers.items.begin() + static_cast<std::ptrdiff_t>(layers.starts[layer]);
    const auto last = layers.items.begin() + static_cast<std::ptrdiff_t>(layers.starts[layer + 1]);
    sort_unless_sorted(first, last,
                       [](const Placed& a, const Placed& b) { return a.segment.dst_row < b.segment.dst_row; });
    for (auto next = first; next != last; ++next) {
      if (next != first && is_continued(segments.back(), next->segment)) {
        segments.back().num_rows += next->segment.num_rows;
      } else {
        segments.push_back(next->segment);
      }
    }
  }
}

// Calls visit(first, last) for the items of every rank, ascending.
template <typename Item, typename RankOf, typename Visit>
void for_each_rank(const std::vector<Item>& items, RankOf rank_of, Visit visit) {
  const auto ranks = group_by(items.begin(), items.end(), rank_of);
  for (std::size_t rank = 0; rank + 1 < ranks.starts.size(); ++rank) {
    visit(ranks.items.begin() + static_cast<std::ptrdiff_t>(ranks.starts[rank]),
          ranks.items.begin() + static_cast<std::ptrdiff_t>(ranks.starts[rank + 1]));
  }
}

// Forward and backward are one algorithm with the roles swapped: cut the links where their senders
// change, cut the receiving axis where the pieces change, and let every receiver walk over that.
class Router {
 public:
  // `senders` ascending by (start, rank).
  Router(const std::vector<HolderRun>& senders, const std::vector<std::int64_t>& host_of, bool from_all)
      : senders_(senders), cells_(cells_of(senders, span_of)), host_of_(host_of), from_all_(from_all) {
    cells_.order_members([&](std::size_t a, std::size_t b) { return senders[a].rank < senders[b].rank; });
    std::int64_t num_ranks = 0;
    for (const HolderRun& sender : senders) num_ranks = std::max(num_ranks, sender.rank + 1);
    num_sent_.resize(static_cast<std::size_t>(num_ranks));
  }

  // `receivers` ascending by (start, rank).
  std::vector<Segment> route(const std::vector<Link>& links, const std::vector<HolderRun>& receivers) {
    const std::vector<Piece> pieces = cut(links);
    Cells atoms = cells_of(pieces, [](const Piece& piece) { return piece.received; });
    atoms.order_members([&](std::size_t a, std::size_t b) { return pieces[a].use_start < pieces[b].use_start; });
    const auto place = [&](const HolderRun& run) {
      atoms.for_each_piece(span_of(run), [&](std::size_t atom, Span rows) {
        std::int64_t layer = 0;
        for (std::size_t index : atoms.members(atom)) layer = send(pieces[index], run, rows, layer);
      });
    };
    std::vector<Segment> segments;
    if (from_all_) {
      // Nobody is chosen, so receivers need not come in the order of their rows: one rank at a time takes less memory.
      for_each_rank(receivers, [](const HolderRun& run) { return run.rank; }, [&](auto first, auto last) {
        placed_.clear();
        std::for_each(first, last, place);
        const bool is_first = segments.empty();
        add_merged(placed_.begin(), placed_.end(), segments);
        // Growing by doubling would touch twice the memory: take the others to be like the first.
        const auto share = static_cast<std::size_t>(last - first);
        if (is_first && share > 0) segments.reserve(segments.size() * receivers.size() / share);
      });
    } else {
      std::for_each(receivers.begin(), receivers.end(), place);
      for_each_rank(placed_, [](const Placed& p) { return p.segment.dst_rank; },
                    [&](auto first, auto last) { add_merged(first, last, segments); });
    }
    return segments;
  }

 private:
  // The links' pieces, ascending on the receiving axis.
  std::vector<Piece> cut(const std::vector<Link>& links) const {
    std::vector<Piece> pieces;
    pieces.reserve(links.size());
    for (const Link& link : links) {
      cells_.for_each_piece({link.send_start, link.num_rows}, [&](std::size_t cell, Span rows) {
        const std::int64_t offset = rows.start - link.send_start;
        const Span received{link.recv_start + offset, rows.num_rows};
        if (!cells_.members(cell).empty()) pieces.push_back({received, rows.start, link.use_start + offset, cell});
      });
    }
    sort_unless_sorted(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
      return std::tie(a.received.start, a.use_start) < std::tie(b.received.start, b.use_start);
    });
    return pieces;
  }

  // Sends `rows` of the receiving axis, which lie in `piece`, to `receiver`; returns the next layer.
  std::int64_t send(const Piece& piece, const HolderRun& receiver, Span rows, std::int64_t layer) {
    const std::int64_t send_start = piece.send_start + (rows.start - piece.received.start);
    const auto place = [&](const HolderRun& sender) {
      if (sender.rank != receiver.rank) num_sent_[static_cast<std::size_t>(sender.rank)] += rows.num_rows;
      const Segment segment{sender.rank, sender.row + (send_start - sender.start), receiver.rank,
                            receiver.row + (rows.start - receiver.start), rows.num_rows};
      placed_.push_back({segment, layer++});
    };
    const Cells::Members holders = cells_.members(piece.cell);
    if (from_all_) {
      for (std::size_t holder : holders) place(senders_[holder]);
    } else {
      place(choose(holders, receiver.rank));
    }
    return layer;
  }

  // The receiver itself, otherwise one on its host, otherwise any; of several the one that has sent least.
  const HolderRun& choose(Cells::Members holders, std::int64_t receiver) const {
    const HolderRun* best = nullptr;
    std::pair<bool, std::int64_t> best_cost;
    for (std::size_t holder : holders) {  // ascending by rank, so that ties go to the smaller
      const HolderRun& sender = senders_[holder];
      if (sender.rank == receiver) return sender;
      const auto rank = static_cast<std::size_t>(sender.rank);
      const bool is_far = !host_of_.empty() && host_of_[rank] != host_of_[static_cast<std::size_t>(receiver)];
      const std::pair<bool, std::int64_t> cost{is_far, num_sent_[rank]};
      if (best == nullptr || cost < best_cost) {
        best = &sender;
        best_cost = cost;
      }
    }
    return *best;
  }

  const std::vector<HolderRun>& senders_;
  Cells cells_;
  const std::vector<std::int64_t>& host_of_;
  bool from_all_;
  std::vector<std::int64_t> num_sent_;  // rows that each rank has sent to others
  std::vector<Placed> placed_;
};

}  // namespace

std::vector<Segment> forward_route(Boundary boundary) {
  boundary = sorted_and_checked(std::move(boundary));
  std::vector<Link> links;
  links.reserve(boundary.uses.size());
  for (const UseRun& use : boundary.uses) {
    links.push_back({use.produced_start, use.use_start, use.use_start, use.num_rows});
  }
  return Router(boundary.producers, boundary.host_of, false).route(links, boundary.consumers);
}

std::vector<Segment> backward_route(Boundary boundary, bool partial) {
  boundary = sorted_and_checked(std::move(boundary));
  std::vector<Link> links;
  links.reserve(boundary.uses.size());
  for (const UseRun& use : boundary.uses) {
    links.push_back({use.use_start, use.produced_start, use.use_start, use.num_rows});
  }
  return Router(boundary.consumers, boundary.host_of, partial).route(links, boundary.producers);
}

}  // namespace hetsched
