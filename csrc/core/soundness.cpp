#include "core/soundness.h"

#include <algorithm>

namespace hetsched {
namespace {

struct Place {
  std::int32_t lane;
  std::int32_t action;
};

template <typename Visit>
void for_each_part(const Program& program, Visit visit) {
  for (std::int32_t lane = 0; lane < program.num_lanes; ++lane) {
    for (std::int32_t action = program.lane_begin[lane]; action < program.lane_begin[lane + 1]; ++action) {
      for (std::int32_t p = program.part_begin[action]; p < program.part_begin[action + 1]; ++p) {
        visit(program.parts[p], Place{lane, action});
      }
    }
  }
}

bool is_backward(Kind kind) { return kind == Kind::B || kind == Kind::I || kind == Kind::W; }

class CompleteCheck {
 public:
  CompleteCheck(const Program& program, const Sites& sites) : program_(program), sites_(sites) {
    const auto is_of_training = [](const Part& part) {
      return is_backward(part.kind) || part.kind == Kind::ReduceGrad;
    };
    is_forward_only_ = std::none_of(program.parts.begin(), program.parts.end(), is_of_training);
  }

  void stage(std::int32_t module, std::int32_t stage) {
    const Site& site = sites_.site(sites_.stage_site(module, stage));
    for (std::int32_t m = 0; m < program_.num_microbatches; ++m) {
      for (const Lanes& gang : site.gangs) {
        const bool is_expected = is_forward_expected(module, stage, gang, m);
        for (const std::int32_t lane : gang) {
          forward({Kind::F, module, stage, m, m}, lane, is_expected);
          backward({Kind::B, module, stage, m, m}, lane);
        }
      }
    }
  }

 private:
  // Items run on a gang through all stages of it or not at all.
  bool is_forward_expected(std::int32_t module, std::int32_t stage, const Lanes& gang, std::int32_t m) const {
    const ModuleSpec& spec = program_.modules[module];
    if (!spec.takes_items) return true;
    const auto runs = [&](std::int32_t at, const Lanes& lanes) {
      return std::any_of(lanes.begin(), lanes.end(),
                         [&](std::int32_t lane) { return sites_.runs(sites_.stage_site(module, at), lane, m); });
    };
    if (runs(stage, gang)) return true;
    const auto& gangs = spec.stages[stage];
    const auto index = std::find(gangs.begin(), gangs.end(), gang) - gangs.begin();
    for (std::size_t other = 0; other < spec.stages.size(); ++other) {
      const bool is_same_chain = spec.stages[other].size() == gangs.size();
      if (is_same_chain && runs(static_cast<std::int32_t>(other), spec.stages[other][index])) return true;
    }
    return false;
  }

  void forward(const Part& part, std::int32_t lane, bool is_expected) const {
    const std::int32_t site = sites_.site_of(part);
    if (sites_.runs(site, lane, part.first)) return;
    for (const Kind kind : {Kind::B, Kind::I, Kind::W, Kind::SendF, Kind::RecvF}) {
      const std::int32_t user = sites_.find(site, kind, lane, part.first);
      if (user >= 0) throw Fault{FaultKind::Missing, lane, user, lane, -1, part};
    }
    if (is_expected) throw Fault{FaultKind::Missing, lane, -1, lane, -1, part};
  }

  void backward(Part part, std::int32_t lane) const {
    const std::int32_t site = sites_.site_of(part);
    const auto find = [&](Kind kind) { return sites_.find(site, kind, lane, part.first); };
    const std::int32_t full = find(Kind::B), input = find(Kind::I), weight = find(Kind::W);
    const std::int32_t any = std::max({full, input, weight});
    if (any >= 0 && !program_.modules[part.name].has_backward) throw Fault{FaultKind::Frozen, lane, any};
    if (full >= 0 && std::max(input, weight) >= 0) {
      throw Fault{FaultKind::BackwardTwice, lane, std::max(full, any), lane, std::min(full, std::max(input, weight))};
    }
    const std::int32_t forward = find(Kind::F);
    if (full >= 0 || forward < 0 || is_forward_only_ || !program_.modules[part.name].has_backward) return;
    if (input >= 0 && weight >= 0) return;
    part.kind = input >= 0 ? Kind::W : weight >= 0 ? Kind::I : Kind::B;
    throw Fault{FaultKind::Missing, lane, std::max(any, forward), lane, -1, part};
  }

  const Program& program_;
  const Sites& sites_;
  bool is_forward_only_;
};

class OrderCheck {
 public:
  OrderCheck(const Program& program, const Sites& sites) : program_(program), sites_(sites) {}

  void part(const Part& part, const Place& at) const {
    for (std::int32_t m = part.first; m <= part.last; ++m) {
      const Part one{part.kind, part.name, part.stage, m, m};
      if (is_transfer(part.kind)) {
        transfer(one, at);
      } else if (part.kind == Kind::F) {
        forward(one, at);
      } else if (part.kind == Kind::W) {
        need({Kind::I, part.name, part.stage, m, m}, at);
      } else {
        backward(one, at);
      }
    }
  }

 private:
  void need(const Part& wanted, const Place& at) const {
    const std::int32_t found = sites_.find(sites_.site_of(wanted), wanted.kind, at.lane, wanted.first);
    if (found < 0) throw Fault{FaultKind::Missing, at.lane, at.action, at.lane, -1, wanted};
    if (found >= at.action) throw Fault{FaultKind::UsedBeforeExists, at.lane, at.action, at.lane, found, wanted};
  }

  // The input gradient comes from a B or, where W is apart, from an I.
  void need_input_gradient(Part wanted, const Place& at) const {
    const bool is_split = sites_.find(sites_.site_of(wanted), Kind::I, at.lane, wanted.first) >= 0;
    wanted.kind = is_split ? Kind::I : Kind::B;
    need(wanted, at);
  }

  Part part_at(const Link& link, bool is_down, Kind kind, std::int32_t m) const {
    const bool is_boundary = program_.is_edge(link.name) && is_transfer(kind);
    const std::int32_t stage_site = is_down ? link.down_stage : link.up_stage;
    const std::int32_t module = sites_.site(stage_site).module;
    const std::int32_t stage = stage_site - sites_.stage_site(module, 0);
    return {kind, is_boundary ? link.name : module, stage, m, m};
  }

  void forward(const Part& part, const Place& at) const {
    for (const std::int32_t index : sites_.links_into(sites_.site_of(part))) {
      const Link& link = sites_.links()[index];
      if (link.is_local) {
        need(part_at(link, false, Kind::F, part.first), at);
      } else if (!sites_.peers(link, true, at.lane, part.first).empty()) {
        need(part_at(link, true, Kind::RecvF, part.first), at);
      }
    }
  }

  void backward(const Part& part, const Place& at) const {
    need({Kind::F, part.name, part.stage, part.first, part.last}, at);
    for (const std::int32_t index : sites_.links_from(sites_.site_of(part))) {
      const Link& link = sites_.links()[index];
      if (link.is_local) {
        need_input_gradient(part_at(link, true, Kind::B, part.first), at);
      } else if (!sites_.peers(link, false, at.lane, part.first).empty()) {
        need(part_at(link, false, Kind::RecvB, part.first), at);
      }
    }
  }

  void transfer(const Part& part, const Place& at) const {
    const bool is_send = part.kind == Kind::SendF || part.kind == Kind::SendB;
    const bool is_forward = part.kind == Kind::SendF || part.kind == Kind::RecvF;
    const bool is_down = is_send != is_forward;
    const Link* link = sites_.link_of(part);
    if (link == nullptr || link->is_local || (!is_forward && !link->has_backward)) {
      throw Fault{FaultKind::NothingToTransfer, at.lane, at.action};
    }
    const Lanes peers = sites_.peers(*link, is_down, at.lane, part.first);
    if (peers.empty()) throw Fault{FaultKind::NothingToTransfer, at.lane, at.action};
    if (is_send) {
      const Part result = part_at(*link, is_down, is_forward ? Kind::F : Kind::B, part.first);
      is_forward ? need(result, at) : need_input_gradient(result, at);
    }
    const Kind kind = is_forward ? (is_send ? Kind::RecvF : Kind::SendF) : (is_send ? Kind::RecvB : Kind::SendB);
    const Part other = part_at(*link, !is_down, kind, part.first);
    for (const std::int32_t peer : peers) {
      if (sites_.find(sites_.site_of(other), kind, peer, part.first) < 0) {
        throw Fault{FaultKind::Missing, at.lane, at.action, peer, -1, other};
      }
    }
  }

  const Program& program_;
  const Sites& sites_;
};

struct ParameterState {
  std::int32_t reduction = -1;
  bool is_sharded = false;
};

}  // namespace

void check_complete(const Program& program, const Sites& sites) {
  CompleteCheck check(program, sites);
  for (std::size_t module = 0; module < program.modules.size(); ++module) {
    for (std::size_t stage = 0; stage < program.modules[module].stages.size(); ++stage) {
      check.stage(static_cast<std::int32_t>(module), static_cast<std::int32_t>(stage));
    }
  }
}

void check_order_on_lanes(const Program& program, const Sites& sites) {
  const OrderCheck check(program, sites);
  for_each_part(program, [&](const Part& part, const Place& at) { check.part(part, at); });
}

void check_parameters(const Program& program, const Sites& sites) {
  const auto num_sites = static_cast<std::size_t>(sites.num_stage_sites());
  std::vector<bool> is_ever_sharded(num_sites, false), is_reduced(program.modules.size(), false);
  for (const Part& part : program.parts) {
    if (part.kind == Kind::Unshard || part.kind == Kind::Reshard) is_ever_sharded[sites.site_of(part)] = true;
    if (part.kind == Kind::ReduceGrad) is_reduced[part.name] = true;
  }
  // [lane, site]
  std::vector<ParameterState> states(num_sites * static_cast<std::size_t>(program.num_lanes));
  for (std::size_t i = 0; i < states.size(); ++i) states[i].is_sharded = is_ever_sharded[i % num_sites];
  for_each_part(program, [&](const Part& part, const Place& at) {
    if (is_transfer(part.kind)) return;
    const std::int32_t site = sites.site_of(part);
    ParameterState& state = states[static_cast<std::size_t>(at.lane) * num_sites + static_cast<std::size_t>(site)];
    if (part.kind != Kind::ReduceGrad && is_ever_sharded[site] && state.is_sharded != (part.kind == Kind::Unshard)) {
      throw Fault{FaultKind::NotUnsharded, at.lane, at.action};
    }
    if (part.kind == Kind::Unshard || part.kind == Kind::Reshard) state.is_sharded = !state.is_sharded;
    if (part.kind == Kind::ReduceGrad) {
      if (state.reduction >= 0) throw Fault{FaultKind::Duplicate, at.lane, at.action, at.lane, state.reduction, part};
      state.reduction = at.action;
    } else if ((part.kind == Kind::B || part.kind == Kind::W) && state.reduction >= 0) {
      throw Fault{FaultKind::UsedBeforeExists, at.lane, state.reduction, at.lane, at.action, part};
    }
  });
  for (std::int32_t site = 0; site < sites.num_stage_sites(); ++site) {
    const std::int32_t module = sites.site(site).module;
    if (!is_reduced[module]) continue;
    for (const std::int32_t lane : sites.site(site).lanes) {
      if (states[static_cast<std::size_t>(lane) * num_sites + static_cast<std::size_t>(site)].reduction >= 0) continue;
      throw Fault{FaultKind::Missing, lane, -1, lane, -1,
                  Part{Kind::ReduceGrad, module, site - sites.stage_site(module, 0), 0, -1}};
    }
  }
}

}  // namespace hetsched
