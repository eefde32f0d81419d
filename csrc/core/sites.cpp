#include "core/sites.h"

#include <algorithm>
#include <set>

namespace hetsched {
namespace {

// Gang i talks with gang i where both ends have as many, otherwise every lane with every lane.
std::vector<Lanes> talks_with(const Site& here, const Site& there, bool is_boundary) {
  std::vector<Lanes> result;
  for (const std::int32_t gang : here.gang_of) {
    const bool is_paired = !is_boundary && here.gangs.size() == there.gangs.size();
    result.push_back(is_paired ? there.gangs[gang] : there.lanes);
  }
  return result;
}

bool is_producer_end(Kind kind) { return kind == Kind::SendF || kind == Kind::RecvB; }

}  // namespace

Sites::Sites(const Program& program) : program_(program) {
  for (std::size_t module = 0; module < program.modules.size(); ++module) {
    stage_base_.push_back(static_cast<std::int32_t>(sites_.size()));
    for (const auto& gangs : program.modules[module].stages) add_site(static_cast<std::int32_t>(module), gangs);
  }
  num_stage_sites_ = static_cast<std::int32_t>(sites_.size());
  for (const EdgeSpec& edge : program.edges) {
    add_site(edge.producer, program.modules[edge.producer].stages.back());
    add_site(edge.consumer, program.modules[edge.consumer].stages[edge.stage]);
  }
  add_links();
  action_.assign(num_rows_ * kNumMicrobatchKinds * program.num_microbatches, -1);
  for (std::int32_t lane = 0; lane < program.num_lanes; ++lane) {
    for (std::int32_t action = program.lane_begin[lane]; action < program.lane_begin[lane + 1]; ++action) {
      for (std::int32_t p = program.part_begin[action]; p < program.part_begin[action + 1]; ++p) {
        place(program.parts[p], lane, action);
      }
    }
  }
}

void Sites::add_site(std::int32_t module, const std::vector<Lanes>& gangs) {
  Site site{gangs, {}, std::vector<std::int32_t>(program_.num_lanes, -1), {}, module, num_rows_};
  std::set<std::int32_t> lanes;
  for (const Lanes& gang : gangs) lanes.insert(gang.begin(), gang.end());
  site.lanes.assign(lanes.begin(), lanes.end());
  site.gang_of.assign(site.lanes.size(), 0);
  for (std::size_t rank = 0; rank < site.lanes.size(); ++rank) {
    site.rank_of[site.lanes[rank]] = static_cast<std::int32_t>(rank);
  }
  for (std::size_t gang = 0; gang < gangs.size(); ++gang) {
    for (const std::int32_t lane : gangs[gang]) site.gang_of[site.rank_of[lane]] = static_cast<std::int32_t>(gang);
  }
  num_rows_ += site.lanes.size();
  sites_.push_back(std::move(site));
}

void Sites::add_links() {
  from_.resize(num_stage_sites_);
  into_.resize(num_stage_sites_);
  for (std::size_t module = 0; module < program_.modules.size(); ++module) {
    const ModuleSpec& spec = program_.modules[module];
    for (std::size_t stage = 0; stage + 1 < spec.stages.size(); ++stage) {
      const std::int32_t up = stage_site(static_cast<std::int32_t>(module), static_cast<std::int32_t>(stage));
      const bool is_local = spec.stages[stage] == spec.stages[stage + 1];
      add_link({static_cast<std::int32_t>(module), up, up + 1, up, up + 1, spec.has_backward, is_local, {}, {}, 0});
    }
  }
  std::int32_t end = num_stage_sites_;
  for (std::size_t e = 0; e < program_.edges.size(); ++e, end += 2) {
    const EdgeSpec& edge = program_.edges[e];
    const ModuleSpec& producer = program_.modules[edge.producer];
    const auto last = static_cast<std::int32_t>(producer.stages.size()) - 1;
    const auto name = static_cast<std::int32_t>(program_.modules.size() + e);
    link_of_edge_.push_back(static_cast<std::int32_t>(links_.size()));
    add_link({name, end, end + 1, stage_site(edge.producer, last), stage_site(edge.consumer, edge.stage),
              producer.has_backward, false, {}, {}, 0});
  }
}

void Sites::add_link(Link link) {
  const Site& up = sites_[link.up];
  const Site& down = sites_[link.down];
  const bool is_boundary = program_.is_edge(link.name);
  link.down_of = talks_with(up, down, is_boundary);
  link.up_of = talks_with(down, up, is_boundary);
  link.channel = num_channels_;
  num_channels_ += 2 * up.lanes.size() * down.lanes.size();
  from_[link.up_stage].push_back(static_cast<std::int32_t>(links_.size()));
  into_[link.down_stage].push_back(static_cast<std::int32_t>(links_.size()));
  links_.push_back(std::move(link));
}

std::int32_t Sites::site_of(const Part& part) const {
  if (!program_.is_edge(part.name)) return stage_site(part.name, part.stage);
  const auto edge = part.name - static_cast<std::int32_t>(program_.modules.size());
  return num_stage_sites_ + 2 * edge + (is_producer_end(part.kind) ? 0 : 1);
}

const Link* Sites::link_of(const Part& transfer) const {
  if (program_.is_edge(transfer.name)) {
    return &links_[link_of_edge_[transfer.name - program_.modules.size()]];
  }
  const std::int32_t site = stage_site(transfer.name, transfer.stage);
  const bool is_outgoing = is_producer_end(transfer.kind);
  for (const std::int32_t link : is_outgoing ? from_[site] : into_[site]) {
    if (links_[link].name == transfer.name) return &links_[link];
  }
  return nullptr;
}

std::size_t Sites::entry(const Site& site, Kind kind, std::int32_t rank, std::int32_t microbatch) const {
  const std::size_t row = site.row + static_cast<std::size_t>(rank);
  const std::size_t column = row * kNumMicrobatchKinds + static_cast<std::size_t>(kind);
  return column * static_cast<std::size_t>(program_.num_microbatches) + static_cast<std::size_t>(microbatch);
}

std::int32_t Sites::find(std::int32_t site, Kind kind, std::int32_t lane, std::int32_t microbatch) const {
  const Site& at = sites_[site];
  const std::int32_t rank = at.rank_of[lane];
  return rank < 0 ? -1 : action_[entry(at, kind, rank, microbatch)];
}

Lanes Sites::peers(const Link& link, bool is_down, std::int32_t lane, std::int32_t microbatch) const {
  const std::int32_t here = is_down ? link.down_stage : link.up_stage;
  const std::int32_t there = is_down ? link.up_stage : link.down_stage;
  Lanes result;
  if (!runs(here, lane, microbatch)) return result;
  const std::vector<Lanes>& talks = is_down ? link.up_of : link.down_of;
  for (const std::int32_t peer : talks[sites_[here].rank_of[lane]]) {
    if (runs(there, peer, microbatch)) result.push_back(peer);
  }
  return result;
}

void Sites::check_place(const Part& part, std::int32_t lane, std::int32_t action) const {
  const auto refuse = [&](FaultKind kind) { throw Fault{kind, lane, action, -1, -1, part}; };
  if (program_.is_edge(part.name)) {
    const EdgeSpec& edge = program_.edge(part.name);
    const auto last = static_cast<std::int32_t>(program_.modules[edge.producer].stages.size()) - 1;
    const std::int32_t stage = is_producer_end(part.kind) ? last : edge.stage;
    if (!is_transfer(part.kind) || part.stage != stage) refuse(FaultKind::NoSuchStage);
  } else if (part.stage < 0 || part.stage >= static_cast<std::int32_t>(program_.modules[part.name].stages.size())) {
    refuse(FaultKind::NoSuchStage);
  }
  if (sites_[site_of(part)].rank_of[lane] < 0) refuse(FaultKind::NotOnLane);
  const bool is_window = part.first >= 0 && part.first <= part.last && part.last < program_.num_microbatches;
  if (is_window == is_collective(part.kind)) refuse(FaultKind::MicrobatchRange);
  if (is_transfer(part.kind) && part.first != part.last) refuse(FaultKind::WindowOfTransfer);
}

void Sites::place(const Part& part, std::int32_t lane, std::int32_t action) {
  check_place(part, lane, action);
  const Site& site = sites_[site_of(part)];
  for (std::int32_t m = part.first; m <= part.last; ++m) {
    std::int32_t& taken = action_[entry(site, part.kind, site.rank_of[lane], m)];
    if (taken >= 0) throw Fault{FaultKind::Duplicate, lane, action, lane, taken, part};
    taken = action;
  }
}

}  // namespace hetsched
