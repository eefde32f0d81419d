#include "core/precedence.h"

#include <algorithm>
#include <stdexcept>

namespace hetsched {
namespace {

// All (stage, direction, microbatch) results of a program and the actions that make them.
class Results {
 public:
  explicit Results(const Program& program) : program_(program), stage_begin_(1, 0) {
    for (const ModuleSpec& module : program.modules) {
      stage_begin_.push_back(stage_begin_.back() + static_cast<std::int32_t>(module.stages.size()));
    }
    begin_.assign(2 * static_cast<std::size_t>(stage_begin_.back()) * program.num_microbatches + 1, 0);
    each_result([this](std::size_t key, std::int32_t) { ++begin_[key + 1]; });
    for (std::size_t key = 1; key < begin_.size(); ++key) begin_[key] += begin_[key - 1];
    makers_.resize(begin_.back());
    std::vector<std::int32_t> free(begin_.begin(), begin_.end() - 1);
    each_result([&](std::size_t key, std::int32_t action) { makers_[free[key]++] = action; });
  }

  template <typename Visit>
  void each_maker(std::int32_t module, std::int32_t stage, bool is_forward, std::int32_t m, const Visit& visit) const {
    const std::size_t key = key_of(module, stage, is_forward, m);
    for (std::int32_t i = begin_[key]; i < begin_[key + 1]; ++i) visit(makers_[i]);
  }

 private:
  std::size_t key_of(std::int32_t module, std::int32_t stage, bool is_forward, std::int32_t m) const {
    return (2 * static_cast<std::size_t>(stage_begin_[module] + stage) + (is_forward ? 0 : 1)) *
               program_.num_microbatches + m;
  }

  template <typename Visit>
  void each_result(const Visit& visit) const {
    for (std::int32_t action = 0; action < program_.num_actions(); ++action) {
      for (std::int32_t p = program_.part_begin[action]; p < program_.part_begin[action + 1]; ++p) {
        const Part& part = program_.parts[p];
        if (!is_compute(part.kind) || part.kind == Kind::W) continue;
        for (std::int32_t m = part.first; m <= part.last; ++m) {
          visit(key_of(part.name, part.stage, part.kind == Kind::F, m), action);
        }
      }
    }
  }

  const Program& program_;
  std::vector<std::int32_t> stage_begin_, begin_, makers_;
};

// Calls visit(maker) for each action whose result the part needs.
template <typename Visit>
void each_need(const Program& program, const Results& results, const Part& part, const Visit& visit) {
  const bool is_forward = part.kind == Kind::F;
  if (!is_compute(part.kind) || part.kind == Kind::W) return;
  const auto last = static_cast<std::int32_t>(program.modules[part.name].stages.size()) - 1;
  const std::int32_t from = part.stage + (is_forward ? -1 : 1);
  for (std::int32_t m = part.first; m <= part.last; ++m) {
    if (from >= 0 && from <= last) results.each_maker(part.name, from, is_forward, m, visit);
    for (const EdgeSpec& edge : program.edges) {
      if (is_forward && edge.consumer == part.name && edge.stage == part.stage) {
        const auto end = static_cast<std::int32_t>(program.modules[edge.producer].stages.size()) - 1;
        results.each_maker(edge.producer, end, true, m, visit);
      } else if (!is_forward && edge.producer == part.name && part.stage == last) {
        results.each_maker(edge.consumer, edge.stage, false, m, visit);
      }
    }
  }
}

void find_needs(const Program& program, Precedence& found) {
  const Results results(program);
  const std::int32_t num_actions = program.num_actions();
  found.num_needed.assign(num_actions, 0);
  found.next_begin.assign(num_actions + 1, 0);
  const auto each_arrow = [&](const auto& visit) {
    for (std::int32_t action = 0; action < num_actions; ++action) {
      for (std::int32_t p = program.part_begin[action]; p < program.part_begin[action + 1]; ++p) {
        each_need(program, results, program.parts[p], [&](std::int32_t maker) {
          if (found.lane_of[maker] != found.lane_of[action]) visit(maker, action);
        });
      }
    }
    for (const auto& [first, then] : program.waits) {
      if (found.lane_of[first] != found.lane_of[then]) visit(first, then);
    }
  };
  each_arrow([&](std::int32_t maker, std::int32_t action) {
    ++found.next_begin[maker + 1];
    ++found.num_needed[action];
  });
  for (std::int32_t action = 0; action < num_actions; ++action) {
    found.next_begin[action + 1] += found.next_begin[action];
  }
  found.next.resize(found.next_begin.back());
  std::vector<std::int32_t> free(found.next_begin.begin(), found.next_begin.end() - 1);
  each_arrow([&](std::int32_t maker, std::int32_t action) { found.next[free[maker]++] = action; });
}

void find_gates(const Program& program, const EdgeSpec& edge, Precedence& found) {
  found.gate.assign(program.num_actions(), -1);
  found.gives.assign(program.num_actions(), -1);
  found.num_gives.assign(program.num_microbatches, 0);
  found.gate_begin.assign(program.num_microbatches + 1, 0);
  for (std::int32_t action = 0; action < program.num_actions(); ++action) {
    for (std::int32_t p = program.part_begin[action]; p < program.part_begin[action + 1]; ++p) {
      const Part& part = program.parts[p];
      if (part.name != edge.consumer || part.stage != edge.stage || part.kind == Kind::W) continue;
      (part.kind == Kind::F ? found.gate : found.gives)[action] = part.first;
      part.kind == Kind::F ? ++found.gate_begin[part.first + 1] : ++found.num_gives[part.first];
    }
  }
  for (std::int32_t m = 0; m < program.num_microbatches; ++m) found.gate_begin[m + 1] += found.gate_begin[m];
  found.gate_actions.resize(found.gate_begin.back());
  std::vector<std::int32_t> free(found.gate_begin.begin(), found.gate_begin.end() - 1);
  for (std::int32_t action = 0; action < program.num_actions(); ++action) {
    if (found.gate[action] >= 0) found.gate_actions[free[found.gate[action]]++] = action;
  }
}

void find_order(Precedence& found) {
  std::vector<std::int32_t> missing = found.num_needed;
  for (std::int32_t lane = 0; lane < found.num_lanes(); ++lane) {
    for (std::int32_t action = found.lane_begin[lane] + 1; action < found.lane_begin[lane + 1]; ++action) {
      ++missing[action];
    }
  }
  for (std::int32_t action = 0; action < found.num_actions(); ++action) {
    if (missing[action] == 0) found.order.push_back(action);
  }
  const auto settle = [&](std::int32_t action) {
    if (--missing[action] == 0) found.order.push_back(action);
  };
  for (std::size_t i = 0; i < found.order.size(); ++i) {
    const std::int32_t action = found.order[i];
    if (action + 1 < found.lane_begin[found.lane_of[action] + 1]) settle(action + 1);
    for (std::int32_t n = found.next_begin[action]; n < found.next_begin[action + 1]; ++n) settle(found.next[n]);
  }
  if (found.order.size() < found.lane_of.size()) throw std::invalid_argument("the program waits for itself");
}

}  // namespace

Precedence find_precedence(const Program& program, std::int32_t edge) {
  Precedence found;
  found.lane_begin = program.lane_begin;
  found.lane_of.resize(program.num_actions());
  for (std::int32_t lane = 0; lane < program.num_lanes; ++lane) {
    for (std::int32_t action = program.lane_begin[lane]; action < program.lane_begin[lane + 1]; ++action) {
      found.lane_of[action] = lane;
    }
  }
  find_needs(program, found);
  find_gates(program, program.edges[edge], found);
  find_order(found);
  return found;
}

std::vector<Time> earliest_starts(const Precedence& precedence, const std::vector<Time>& durations) {
  if (durations.size() != precedence.lane_of.size()) throw std::invalid_argument("not one duration for each action");
  std::vector<Time> starts(durations.size(), 0);
  for (const std::int32_t action : precedence.order) {
    const Time end = starts[action] + durations[action];
    const auto delay = [&](std::int32_t later) { starts[later] = std::max(starts[later], end); };
    if (action + 1 < precedence.lane_begin[precedence.lane_of[action] + 1]) delay(action + 1);
    for (std::int32_t n = precedence.next_begin[action]; n < precedence.next_begin[action + 1]; ++n) {
      delay(precedence.next[n]);
    }
  }
  return starts;
}

}  // namespace hetsched
