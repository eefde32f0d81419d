#include <algorithm>
#include <map>
#include <stdexcept>

#include "check.h"
#include "core/placement.h"
#include "core/placement_moves.h"

using namespace hetsched;

namespace {

// An LLM of two stages on two lanes and `m` microbatches, all forwards first; an encoder on both lanes feeds it.
Program two_lanes(std::int32_t m) {
  Program program{2, m, {{{{{0}, {1}}}, true, true}, {{{{0}}, {{1}}}, true, false}}, {{0, 1, 0}}, {}, {0}, {0}};
  for (std::int32_t lane = 0; lane < 2; ++lane) {
    for (const Kind kind : {Kind::F, Kind::B}) {
      for (std::int32_t i = 0; i < m; ++i) {
        program.parts.push_back({kind, 1, lane, i, i});
        program.part_begin.push_back(static_cast<std::int32_t>(program.parts.size()));
      }
    }
    program.lane_begin.push_back(static_cast<std::int32_t>(program.parts.size()));
  }
  return program;
}

EncoderWork work_of(std::int32_t m, std::int32_t items, std::int32_t in_flight) {
  EncoderWork work{0, {0, 1}, {0}, {}, {}, true, in_flight, false};
  for (std::int32_t i = 0; i < m; ++i) {
    work.item_begin.push_back((i + 1) * items);
    work.forward.insert(work.forward.end(), items, 3);
    work.backward.insert(work.backward.end(), items, 5);
  }
  return work;
}

Placement place(std::int32_t m, std::int32_t items, std::int32_t in_flight, std::int32_t budget) {
  const Program program = two_lanes(m);
  return place_encoder(program, std::vector<Time>(program.num_actions(), 4), work_of(m, items, in_flight), budget);
}

// Every item is encoded once, and once more backward on the same lane.
bool is_complete(const Placement& placement, std::int32_t m, std::int32_t items) {
  std::map<std::pair<std::int32_t, std::int32_t>, std::vector<std::int32_t>> lanes;
  for (const bool is_forward : {true, false}) {
    for (const PlacedAction& a : placement.actions) {
      if (a.is_forward != is_forward) continue;
      for (std::int32_t i = 0; i < a.num_items; ++i) lanes[{a.microbatch, a.first_item + i}].push_back(a.lane);
    }
  }
  return lanes.size() == static_cast<std::size_t>(m * items) &&
         std::all_of(lanes.begin(), lanes.end(), [](const auto& entry) {
           return entry.second.size() == 2 && entry.second[0] == entry.second[1];
         });
}

}  // namespace

TEST(every_item_is_placed_once_whatever_the_budget) {
  for (const std::int32_t budget : {1, 20, 500}) {
    CHECK(is_complete(place(4, 1, 0, budget), 4, 1));
    CHECK(is_complete(place(4, 3, 0, budget), 4, 3));
  }
}

TEST(a_larger_budget_is_never_worse_and_no_placement_beats_the_bound) {
  const Placement quick = place(4, 2, 0, 1), thorough = place(4, 2, 0, 2000);
  CHECK(thorough.makespan <= quick.makespan);
  CHECK(thorough.makespan >= thorough.lower_bound);
  CHECK(quick.num_evaluations == 1);
}

TEST(moves_time_what_they_change_and_restore_it) {
  const Program program = two_lanes(4);
  const EncoderWork work = work_of(4, 3, 0);
  const PlacementProblem problem(program, std::vector<Time>(program.num_actions(), 4), work);
  const Candidate start = run_pass(problem, {problem.lower_bound, false, true, Recompute::Never, {3, 3, 3, 3}});
  MovablePlacement placement(problem, start);
  CHECK(placement.makespan() == start.makespan);
  Random random;
  for (std::int32_t i = 0; i < 300; ++i) {
    placement.change(random);
    if (placement.time() && i % 2 == 0) {
      placement.keep();
    } else {
      placement.restore();
    }
  }
  CHECK(placement.time());
  const Candidate moved = placement.candidate();
  CHECK(is_complete({moved.actions, {}, 0, 0, 0}, 4, 3));
}

TEST(work_that_does_not_fit_the_program_throws) {
  const Program program = two_lanes(4);
  CHECK_THROWS(std::invalid_argument, place_encoder(program, {1, 2}, work_of(4, 1, 0), 1));
  CHECK_THROWS(std::invalid_argument,
               place_encoder(program, std::vector<Time>(program.num_actions(), 4), work_of(3, 1, 0), 1));
}
