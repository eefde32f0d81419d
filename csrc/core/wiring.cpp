#include "core/wiring.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace hetsched {
namespace {

class Wirer {
 public:
  Wirer(const Program& program, const Sites& sites)
      : program_(program),
        sites_(sites),
        channel_of_(sites.num_channels(), -1),
        sent_(sites.num_channels()),
        num_received_(sites.num_channels(), 0) {
    wiring_.lane_begin = program.lane_begin;
    wiring_.ops.resize(program.num_actions());
  }

  Wiring run() {
    each_action([this](std::int32_t lane, std::int32_t action, const Part& part) { send(lane, action, part); });
    each_action([this](std::int32_t lane, std::int32_t action, const Part& part) { receive(lane, action, part); });
    each_action([this](std::int32_t lane, std::int32_t action, const Part& part) { join_gang(lane, action, part); });
    for (const auto& [key, gang] : gangs_) check_gang(gang);
    return std::move(wiring_);
  }

 private:
  template <typename Visit>
  void each_action(Visit visit) {
    for (std::int32_t lane = 0; lane < program_.num_lanes; ++lane) {
      for (std::int32_t action = program_.lane_begin[lane]; action < program_.lane_begin[lane + 1]; ++action) {
        visit(lane, action, program_.parts[program_.part_begin[action]]);
      }
    }
  }

  static Direction direction_of(Kind kind) {
    return kind == Kind::SendF || kind == Kind::RecvF ? Direction::Forward : Direction::Backward;
  }

  std::size_t slot_of(const Link& link, Direction direction, std::int32_t up, std::int32_t down) const {
    const Site& up_site = sites_.site(link.up);
    const Site& down_site = sites_.site(link.down);
    const std::size_t num_down = down_site.lanes.size();
    const std::size_t pair = static_cast<std::size_t>(up_site.rank_of[up]) * num_down +
                             static_cast<std::size_t>(down_site.rank_of[down]);
    const std::size_t offset = direction == Direction::Forward ? 0 : up_site.lanes.size() * num_down;
    return link.channel + offset + pair;
  }

  void send(std::int32_t lane, std::int32_t action, const Part& part) {
    if (part.kind != Kind::SendF && part.kind != Kind::SendB) return;
    const Link& link = *sites_.link_of(part);
    const Direction direction = direction_of(part.kind);
    const bool is_down = direction == Direction::Backward;
    Op& op = wiring_.ops[action];
    op = {OpType::Send, static_cast<std::int32_t>(wiring_.messages.size()), 0};
    for (const std::int32_t peer : sites_.peers(link, is_down, lane, part.first)) {
      const std::size_t slot = is_down ? slot_of(link, direction, peer, lane) : slot_of(link, direction, lane, peer);
      if (channel_of_[slot] < 0) {
        channel_of_[slot] = static_cast<std::int32_t>(wiring_.channels.size());
        wiring_.channels.push_back({link.name, direction, lane, peer});
      }
      const auto sequence = static_cast<std::int32_t>(sent_[slot].size());
      sent_[slot].push_back(static_cast<std::int32_t>(wiring_.messages.size()));
      wiring_.messages.push_back({channel_of_[slot], sequence, part.first, action, -1});
    }
    op.end = static_cast<std::int32_t>(wiring_.messages.size());
  }

  // The k-th RECV of a channel takes its k-th message.
  void receive(std::int32_t lane, std::int32_t action, const Part& part) {
    if (part.kind != Kind::RecvF && part.kind != Kind::RecvB) return;
    const Link& link = *sites_.link_of(part);
    const Direction direction = direction_of(part.kind);
    const bool is_down = direction == Direction::Forward;
    Op& op = wiring_.ops[action];
    op = {OpType::Receive, static_cast<std::int32_t>(wiring_.received.size()), 0};
    for (const std::int32_t peer : sites_.peers(link, is_down, lane, part.first)) {
      const std::size_t slot = is_down ? slot_of(link, direction, peer, lane) : slot_of(link, direction, lane, peer);
      const std::int32_t index = sent_[slot][num_received_[slot]++];
      Message& message = wiring_.messages[index];
      if (message.microbatch != part.first) {
        throw Fault{FaultKind::OutOfOrder, lane, action, peer, message.send};
      }
      message.receive = action;
      wiring_.received.push_back(index);
    }
    op.end = static_cast<std::int32_t>(wiring_.received.size());
  }

  struct Gang {
    Lanes lanes;
    std::vector<std::int32_t> actions;
    Part part;
  };
  using GangKey = std::tuple<std::int32_t, std::int32_t, Kind, std::int32_t, std::int32_t, std::int32_t>;

  void join_gang(std::int32_t lane, std::int32_t action, const Part& part) {
    if (is_transfer(part.kind)) return;
    const std::int32_t index = sites_.site_of(part);
    const Site& site = sites_.site(index);
    const std::int32_t gang = is_collective(part.kind) ? 0 : site.gang_of[site.rank_of[lane]];
    const Lanes& lanes = is_collective(part.kind) ? site.lanes : site.gangs[gang];
    if (lanes.size() < 2) return;
    // A collective may happen again: its n-th on one lane is the n-th on the others.
    const std::int32_t round = is_collective(part.kind) ? num_rounds_[{index, part.kind, lane}]++ : 0;
    Gang& joined = gangs_[{index, gang, part.kind, part.first, part.last, round}];
    joined.lanes = lanes;
    joined.part = part;
    joined.actions.push_back(action);
  }

  // Lanes join in ascending order, so the first that is not there is the one that lacks the action.
  void check_gang(const Gang& gang) {
    for (std::size_t i = 0; i < gang.lanes.size(); ++i) {
      const bool is_there = i < gang.actions.size() && lane_of(gang.actions[i]) == gang.lanes[i];
      if (!is_there) {
        throw Fault{FaultKind::Missing, lane_of(gang.actions[0]), gang.actions[0], gang.lanes[i], -1, gang.part};
      }
      const std::int32_t first = gang.actions[0], here = gang.actions[i];
      if (num_parts(first) != num_parts(here) ||
          !(program_.parts[program_.part_begin[first + 1] - 1] == program_.parts[program_.part_begin[here + 1] - 1])) {
        throw Fault{FaultKind::Missing, lane_of(first), first, gang.lanes[i], -1, gang.part};
      }
      wiring_.ops[here] = {OpType::Gang, static_cast<std::int32_t>(wiring_.gangs.size()), 0};
    }
    wiring_.gangs.push_back(gang.actions);
  }

  std::int32_t num_parts(std::int32_t action) const {
    return program_.part_begin[action + 1] - program_.part_begin[action];
  }

  std::int32_t lane_of(std::int32_t action) const {
    const auto after = std::upper_bound(program_.lane_begin.begin(), program_.lane_begin.end(), action);
    return static_cast<std::int32_t>(after - program_.lane_begin.begin()) - 1;
  }

  const Program& program_;
  const Sites& sites_;
  std::vector<std::int32_t> channel_of_;
  std::vector<std::vector<std::int32_t>> sent_;
  std::vector<std::size_t> num_received_;
  std::map<std::tuple<std::int32_t, Kind, std::int32_t>, std::int32_t> num_rounds_;
  std::map<GangKey, Gang> gangs_;
  Wiring wiring_;
};

}  // namespace

Wiring wire(const Program& program, const Sites& sites) { return Wirer(program, sites).run(); }

}  // namespace hetsched
