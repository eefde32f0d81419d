#include "core/routes.h"

#include <algorithm>
#include <tuple>

#include "core/cells.h"
#include "core/route_checks.h"

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

  auto order() const { return std::tie(segment.dst_rank, layer, segment.dst_row); }
};

// Forward and backward are one algorithm with the roles swapped: cut the links where their senders
// change, cut the receiving axis where the pieces change, and let every receiver walk over that.
class Router {
 public:
  Router(std::vector<HolderRun> senders, const std::vector<std::int64_t>& host_of, bool from_all)
      : senders_(by_rank(std::move(senders))), cells_(spans_of(senders_)), host_of_(host_of), from_all_(from_all) {
    num_sent_.resize(senders_.empty() ? 0 : static_cast<std::size_t>(senders_.back().rank) + 1);
  }

  std::vector<Segment> route(const std::vector<Link>& links, std::vector<HolderRun> receivers) {
    const std::vector<Piece> pieces = cut(links);
    std::vector<Span> received;
    received.reserve(pieces.size());
    for (const Piece& piece : pieces) received.push_back(piece.received);
    const Cells atoms(received);

    std::sort(receivers.begin(), receivers.end(), [](const HolderRun& a, const HolderRun& b) {
      return std::tie(a.start, a.rank) < std::tie(b.start, b.rank);
    });
    for (const HolderRun& run : receivers) {
      atoms.for_each_piece({run.start, run.num_rows}, [&](std::size_t atom, Span rows) {
        std::int64_t layer = 0;
        for (std::size_t index : atoms.members(atom)) layer = send(pieces[index], run, rows, layer);
      });
    }
    return merged();
  }

 private:
  static std::vector<HolderRun> by_rank(std::vector<HolderRun> runs) {
    std::stable_sort(runs.begin(), runs.end(), [](const HolderRun& a, const HolderRun& b) { return a.rank < b.rank; });
    return runs;
  }

  static std::vector<Span> spans_of(const std::vector<HolderRun>& runs) {
    std::vector<Span> spans;
    spans.reserve(runs.size());
    for (const HolderRun& run : runs) spans.push_back({run.start, run.num_rows});
    return spans;
  }

  // The links' pieces, in the order of their use positions.
  std::vector<Piece> cut(const std::vector<Link>& links) const {
    std::vector<Piece> pieces;
    for (const Link& link : links) {
      cells_.for_each_piece({link.send_start, link.num_rows}, [&](std::size_t cell, Span rows) {
        const std::int64_t offset = rows.start - link.send_start;
        const Span received{link.recv_start + offset, rows.num_rows};
        if (!cells_.members(cell).empty()) pieces.push_back({received, rows.start, link.use_start + offset, cell});
      });
    }
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.use_start < b.use_start; });
    return pieces;
  }

  // Sends `rows` of the receiving axis, which lie in `piece`, to `receiver`; returns the next layer.
  std::int64_t send(const Piece& piece, const HolderRun& receiver, Span rows, std::int64_t layer) {
    const std::int64_t send_start = piece.send_start + (rows.start - piece.received.start);
    const auto emit = [&](const HolderRun& sender) {
      if (sender.rank != receiver.rank) num_sent_[static_cast<std::size_t>(sender.rank)] += rows.num_rows;
      placed_.push_back({{sender.rank, sender.row + (send_start - sender.start), receiver.rank,
                          receiver.row + (rows.start - receiver.start), rows.num_rows},
                         layer++});
    };
    const Cells::Members holders = cells_.members(piece.cell);
    if (from_all_) {
      for (std::size_t holder : holders) emit(senders_[holder]);
    } else {
      emit(choose(holders, receiver.rank));
    }
    return layer;
  }

  const HolderRun& choose(Cells::Members holders, std::int64_t receiver) const {
    const HolderRun* best = nullptr;
    const auto cost = [&](const HolderRun& sender) {
      const auto rank = static_cast<std::size_t>(sender.rank);
      const bool is_far = !host_of_.empty() && host_of_[rank] != host_of_[static_cast<std::size_t>(receiver)];
      return std::make_tuple(sender.rank != receiver, is_far, num_sent_[rank]);
    };
    for (std::size_t holder : holders) {  // ascending by rank, so that ties go to the smaller
      const HolderRun& sender = senders_[holder];
      if (best == nullptr || cost(sender) < cost(*best)) best = &sender;
    }
    return *best;
  }

  // What was placed, by destination, then in the order of the sums; neighbors joined.
  std::vector<Segment> merged() {
    const auto is_before = [](const Placed& a, const Placed& b) { return a.order() < b.order(); };
    std::sort(placed_.begin(), placed_.end(), is_before);
    std::vector<Segment> segments;
    std::int64_t last_layer = 0;
    for (const auto& [next, layer] : placed_) {
      if (!segments.empty() && layer == last_layer && is_continued(segments.back(), next)) {
        segments.back().num_rows += next.num_rows;
      } else {
        segments.push_back(next);
      }
      last_layer = layer;
    }
    return segments;
  }

  static bool is_continued(const Segment& last, const Segment& next) {
    return last.src_rank == next.src_rank && last.dst_rank == next.dst_rank &&
           last.src_row + last.num_rows == next.src_row && last.dst_row + last.num_rows == next.dst_row;
  }

  std::vector<HolderRun> senders_;
  Cells cells_;
  const std::vector<std::int64_t>& host_of_;
  bool from_all_;
  std::vector<std::int64_t> num_sent_;  // rows that each rank has sent to others
  std::vector<Placed> placed_;
};

}  // namespace

std::vector<Segment> forward_route(const Boundary& boundary) {
  check_boundary(boundary);
  std::vector<Link> links;
  for (const UseRun& use : boundary.uses) {
    links.push_back({use.produced_start, use.use_start, use.use_start, use.num_rows});
  }
  return Router(boundary.producers, boundary.host_of, false).route(links, boundary.consumers);
}

std::vector<Segment> backward_route(const Boundary& boundary, bool partial) {
  check_boundary(boundary);
  std::vector<Link> links;
  for (const UseRun& use : boundary.uses) {
    links.push_back({use.use_start, use.produced_start, use.use_start, use.num_rows});
  }
  return Router(boundary.consumers, boundary.host_of, partial).route(links, boundary.producers);
}

}  // namespace hetsched
