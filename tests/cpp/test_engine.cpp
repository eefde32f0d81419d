#include <stdexcept>

#include "check.h"
#include "core/engine.h"
#include "core/lower_bound.h"
#include "core/soundness.h"

using namespace hetsched;

namespace {

// Two lanes, two stages of one module, one microbatch: F and B with their transfers.
Program two_stages() {
  Program program{2, 1, {{{{{0}}, {{1}}}, true, false}}, {}, {}, {0}, {0, 5, 10}};
  program.parts = {
      {Kind::F, 0, 0, 0, 0},     {Kind::SendF, 0, 0, 0, 0}, {Kind::RecvB, 0, 0, 0, 0}, {Kind::B, 0, 0, 0, 0},
      {Kind::ReduceGrad, 0, 0, 0, -1},
      {Kind::RecvF, 0, 1, 0, 0}, {Kind::F, 0, 1, 0, 0},     {Kind::B, 0, 1, 0, 0},     {Kind::SendB, 0, 1, 0, 0},
      {Kind::ReduceGrad, 0, 1, 0, -1},
  };
  for (std::int32_t i = 1; i <= 10; ++i) program.part_begin.push_back(i);
  return program;
}

Wiring checked(const Program& program) {
  const Sites sites(program);
  check_complete(program, sites);
  check_order_on_lanes(program, sites);
  check_parameters(program, sites);
  return wire(program, sites);
}

FaultKind fault_of(const Program& program) {
  try {
    checked(program);
  } catch (const Fault& fault) {
    return fault.kind;
  }
  throw std::logic_error("the program is sound");
}

// F = 2, B = 3, other actions nothing; a forward message takes 5, a backward one 7.
Costs costs_of(const Program& program) {
  Costs costs{{}, {5, 7}, {-1, -1}, false};
  for (const Part& part : program.parts) {
    costs.durations.push_back(part.kind == Kind::F ? 2 : part.kind == Kind::B ? 3 : 0);
  }
  return costs;
}

}  // namespace

TEST(a_microbatch_goes_down_and_up) {
  const Program program = two_stages();
  const Run result = run(checked(program), costs_of(program), 1, 1);
  CHECK(result.waits.empty());
  CHECK(result.makespan == 2 + 5 + 2 + 3 + 7 + 3);
  CHECK(result.message_start == std::vector<Time>{2, 12});
  CHECK(result.message_end == std::vector<Time>{7, 19});
  CHECK(result.start[7] == 9);
}

TEST(a_missing_action_is_found) {
  Program program = two_stages();
  program.parts[7].kind = Kind::I;
  CHECK(fault_of(program) == FaultKind::Missing);
}

TEST(a_backward_before_its_forward_is_found) {
  Program program = two_stages();
  std::swap(program.parts[6], program.parts[7]);
  CHECK(fault_of(program) == FaultKind::UsedBeforeExists);
}

TEST(negative_numbers_have_no_place) {
  Program program = two_stages();
  program.parts[0].stage = -1;
  CHECK(fault_of(program) == FaultKind::NoSuchStage);
  program = two_stages();
  program.parts[0].first = -1;
  CHECK(fault_of(program) == FaultKind::MicrobatchRange);
}

TEST(costs_that_do_not_fit_throw) {
  const Program program = two_stages();
  const Wiring wiring = checked(program);
  Costs costs = costs_of(program);
  costs.durations[0] = -1;
  CHECK_THROWS(std::invalid_argument, run(wiring, costs, 1, 1));
  costs.durations.pop_back();
  CHECK_THROWS(std::invalid_argument, run(wiring, costs, 1, 1));
}

// Two sources post to one destination: lane 2 receives what was posted first, and at ties from the smaller lane.
TEST(a_receive_engine_takes_one_message_at_a_time) {
  Program program{3, 1, {{{{{0}}}, false, true}, {{{{1}}}, false, true}, {{{{2}}}, false, false}}, {}, {}, {0}, {}};
  program.edges = {{0, 2, 0}, {1, 2, 0}};
  program.lane_begin = {0, 2, 4, 7};
  program.parts = {
      {Kind::F, 0, 0, 0, 0},     {Kind::SendF, 3, 0, 0, 0}, {Kind::F, 1, 0, 0, 0},     {Kind::SendF, 4, 0, 0, 0},
      {Kind::RecvF, 3, 0, 0, 0}, {Kind::RecvF, 4, 0, 0, 0}, {Kind::F, 2, 0, 0, 0},
  };
  for (std::int32_t i = 1; i <= 7; ++i) program.part_begin.push_back(i);
  Costs costs{{1, 0, 1, 0, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 10, 0, 10, 0}, std::vector<std::int64_t>(10, -1), false};
  const Wiring wiring = checked(program);
  CHECK(run(wiring, costs, 5, 1).message_start == std::vector<Time>{1, 11});
  costs.durations[0] = 2;
  CHECK(run(wiring, costs, 5, 1).message_start == std::vector<Time>{11, 1});
}

TEST(a_send_waits_for_a_slot_and_a_lane_that_waits_for_ever_is_named) {
  // The encoder on lane 0 sends two microbatches to lane 0 itself before it receives the first.
  Program program{1, 2, {{{{{0}}}, false, true}, {{{{0}}}, false, false}}, {{0, 1, 0}}, {}, {0}, {0, 8}};
  program.parts = {
      {Kind::F, 0, 0, 0, 0},     {Kind::SendF, 2, 0, 0, 0}, {Kind::F, 0, 0, 1, 1},     {Kind::SendF, 2, 0, 1, 1},
      {Kind::RecvF, 2, 0, 0, 0}, {Kind::F, 1, 0, 0, 0},     {Kind::RecvF, 2, 0, 1, 1}, {Kind::F, 1, 0, 1, 1},
  };
  for (std::int32_t i = 1; i <= 8; ++i) program.part_begin.push_back(i);
  Costs costs{std::vector<Time>(8, 1), std::vector<Time>(12, 0), std::vector<std::int64_t>(6, 2), false};
  const Wiring wiring = checked(program);
  const Run enough = run(wiring, costs, 3, 2);
  CHECK(enough.waits.empty());
  CHECK(enough.max_in_flight[4] == 2);
  costs.slots.assign(6, 1);
  const Run stuck = run(wiring, costs, 3, 2);
  CHECK(stuck.waits.size() == 1);
  CHECK(stuck.waits[0].action == 3);
  CHECK(stuck.waits[0].for_action == 4);
}

TEST(the_lower_bound_is_head_work_and_tail) {
  const Program program = two_stages();
  const Sites sites(program);
  const Wiring wiring = wire(program, sites);
  CHECK(lower_bound(program, sites, wiring, costs_of(program)) == 2 + 5 + 2 + 3 + 7 + 3);
}
