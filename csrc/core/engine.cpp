#include "core/engine.h"

#include <algorithm>
#include <stdexcept>

namespace hetsched {
namespace {

enum class MessageState : std::uint8_t { Unsent, WaitsForSlot, Posted, Arrived };

struct LaneState {
  std::int32_t next;         // action
  std::int32_t end;
  std::int32_t num_missing = 0;  // messages that the current SEND or RECV waits for
  bool is_entered = false;       // the current action has begun to wait
  bool is_sending = false;       // the send engine is busy
  bool is_receiving = false;
  std::size_t queue_head = 0;
  std::vector<std::int32_t> queue;    // messages posted to the send engine
  std::vector<std::int32_t> waiting;  // lanes whose next message waits for this lane's receive engine
};

class Simulation {
 public:
  Simulation(const Wiring& wiring, const Costs& costs, std::int32_t num_names, std::int32_t num_microbatches)
      : wiring_(wiring),
        costs_(costs),
        num_microbatches_(num_microbatches),
        num_lanes_(wiring.num_lanes()),
        agenda_(3 * num_lanes_),
        lanes_(num_lanes_),
        state_(wiring.messages.size(), MessageState::Unsent),
        is_awaited_(wiring.messages.size(), false),
        post_time_(wiring.messages.size(), 0),
        num_posted_(wiring.channels.size(), 0),
        num_received_(wiring.channels.size(), 0),
        waits_for_slot_(wiring.channels.size(), -1),
        gang_arrived_(wiring.gangs.size(), 0) {
    run_.start.assign(wiring.ops.size(), 0);
    run_.end.assign(wiring.ops.size(), 0);
    run_.message_start.assign(wiring.messages.size(), 0);
    run_.message_end.assign(wiring.messages.size(), 0);
    run_.max_in_flight.assign(2 * static_cast<std::size_t>(num_names), 0);
    for (std::int32_t lane = 0; lane < num_lanes_; ++lane) {
      lanes_[lane].next = wiring.lane_begin[lane];
      lanes_[lane].end = wiring.lane_begin[lane + 1];
      agenda_.set(num_lanes_ + lane, 0);
    }
  }

  // Events at one time: transfers that end, then lanes, then receive engines that choose their next transfer.
  Run run() {
    while (true) {
      const std::int32_t event = agenda_.first();
      const Time now = agenda_.time_of(event);
      if (now == kNever) break;
      agenda_.set(event, kNever);
      const std::int32_t lane = event % num_lanes_;
      if (event < num_lanes_) {
        end_transfer(lane, now);
      } else if (event < 2 * num_lanes_) {
        advance(lane, now);
      } else {
        choose_transfer(lane, now);
      }
    }
    for (const LaneState& lane : lanes_) run_.stopped_at.push_back(lane.next);
    for (std::int32_t lane = 0; lane < num_lanes_; ++lane) {
      if (lanes_[lane].next < lanes_[lane].end) run_.waits.push_back(wait_of(lane));
    }
    return std::move(run_);
  }

 private:
  void wake(std::int32_t lane, Time now) { agenda_.set(num_lanes_ + lane, now); }

  void advance(std::int32_t lane, Time now) {
    LaneState& here = lanes_[lane];
    while (here.next < here.end) {
      const std::int32_t action = here.next;
      const Op& op = wiring_.ops[action];
      if (op.type == OpType::Compute) {
        begin(action, now);
        end(lane, now + costs_.durations[action]);
        if (costs_.durations[action] > 0) return wake(lane, now + costs_.durations[action]);
      } else if (op.type == OpType::Gang) {
        if (!here.is_entered) enter_gang(lane, op.begin, now);
        return;
      } else {
        if (!here.is_entered) {
          here.is_entered = true;
          begin(action, now);
          op.type == OpType::Send ? enter_send(lane, op, now) : enter_receive(lane, op, now);
        }
        if (here.num_missing > 0) return;
        if (op.type == OpType::Receive) free_slots(op, now);
        end(lane, now);
      }
    }
  }

  void begin(std::int32_t action, Time now) { run_.start[action] = now; }

  void end(std::int32_t lane, Time time) {
    run_.end[lanes_[lane].next++] = time;
    lanes_[lane].is_entered = false;
    run_.makespan = std::max(run_.makespan, time);
  }

  void enter_gang(std::int32_t lane, std::int32_t gang, Time now) {
    const std::vector<std::int32_t>& actions = wiring_.gangs[gang];
    lanes_[lane].is_entered = true;
    if (++gang_arrived_[gang] < static_cast<std::int32_t>(actions.size())) return;
    Time duration = 0;
    for (const std::int32_t action : actions) duration = std::max(duration, costs_.durations[action]);
    for (const std::int32_t action : actions) {
      const std::int32_t member = lane_of(action);
      begin(action, now);
      end(member, now + duration);
      wake(member, now + duration);
    }
  }

  void enter_send(std::int32_t lane, const Op& op, Time now) {
    for (std::int32_t message = op.begin; message < op.end; ++message) {
      const std::int32_t channel = wiring_.messages[message].channel;
      if (may_post(message)) {
        post(message, now);
      } else {
        state_[message] = MessageState::WaitsForSlot;
        waits_for_slot_[channel] = message;
        ++lanes_[lane].num_missing;
      }
    }
  }

  void enter_receive(std::int32_t lane, const Op& op, Time now) {
    for (std::int32_t i = op.begin; i < op.end; ++i) {
      const std::int32_t message = wiring_.received[i];
      is_awaited_[message] = true;
      if (state_[message] == MessageState::Arrived) continue;
      ++lanes_[lane].num_missing;
      if (costs_.is_rendezvous && state_[message] == MessageState::WaitsForSlot) post_waiting(message, now);
    }
  }

  bool may_post(std::int32_t message) const {
    const std::int32_t index = wiring_.messages[message].channel;
    const Channel& channel = wiring_.channels[index];
    if (costs_.is_rendezvous) return channel.is_local() || is_awaited_[message];
    const std::int64_t slots = costs_.slots[key(channel)];
    return slots < 0 || num_posted_[index] - num_received_[index] < slots;
  }

  std::size_t key(const Channel& channel) const {
    return 2 * static_cast<std::size_t>(channel.name) + static_cast<std::size_t>(channel.direction);
  }

  void post_waiting(std::int32_t message, Time now) {
    const Channel& channel = wiring_.channels[wiring_.messages[message].channel];
    waits_for_slot_[wiring_.messages[message].channel] = -1;
    post(message, now);
    if (--lanes_[channel.source].num_missing == 0) wake(channel.source, now);
  }

  void post(std::int32_t message, Time now) {
    const std::int32_t index = wiring_.messages[message].channel;
    const Channel& channel = wiring_.channels[index];
    std::int64_t& most = run_.max_in_flight[key(channel)];
    most = std::max<std::int64_t>(most, ++num_posted_[index] - num_received_[index]);
    state_[message] = MessageState::Posted;
    post_time_[message] = now;
    if (time_of(message) == 0) {
      run_.message_start[message] = now;
      return arrive(message, now);
    }
    LaneState& source = lanes_[channel.source];
    source.queue.push_back(message);
    if (!source.is_sending && source.queue.size() - source.queue_head == 1) stand_in_line(channel.source, now);
  }

  Time time_of(std::int32_t message) const {
    const Channel& channel = wiring_.channels[wiring_.messages[message].channel];
    if (channel.is_local()) return 0;
    return costs_.message_times[key(channel) * static_cast<std::size_t>(num_microbatches_) +
                                static_cast<std::size_t>(wiring_.messages[message].microbatch)];
  }

  // The next message of the lane's send engine waits for its receive engine from now on.
  void stand_in_line(std::int32_t source, Time now) {
    const LaneState& lane = lanes_[source];
    const std::int32_t message = lane.queue[lane.queue_head];
    const std::int32_t destination = wiring_.channels[wiring_.messages[message].channel].destination;
    lanes_[destination].waiting.push_back(source);
    agenda_.set(2 * num_lanes_ + destination, now);
  }

  void choose_transfer(std::int32_t destination, Time now) {
    LaneState& here = lanes_[destination];
    if (here.is_receiving || here.waiting.empty()) return;
    const auto posted_first = [this](std::int32_t a, std::int32_t b) {
      const Time time_a = post_time_[lanes_[a].queue[lanes_[a].queue_head]];
      const Time time_b = post_time_[lanes_[b].queue[lanes_[b].queue_head]];
      return time_a != time_b ? time_a < time_b : a < b;
    };
    const auto chosen = std::min_element(here.waiting.begin(), here.waiting.end(), posted_first);
    const std::int32_t source = *chosen;
    here.waiting.erase(chosen);
    here.is_receiving = lanes_[source].is_sending = true;
    const std::int32_t message = lanes_[source].queue[lanes_[source].queue_head];
    run_.message_start[message] = now;
    agenda_.set(source, now + time_of(message));
  }

  void end_transfer(std::int32_t source, Time now) {
    LaneState& lane = lanes_[source];
    const std::int32_t message = lane.queue[lane.queue_head++];
    const std::int32_t destination = wiring_.channels[wiring_.messages[message].channel].destination;
    lane.is_sending = lanes_[destination].is_receiving = false;
    arrive(message, now);
    if (lane.queue_head < lane.queue.size()) stand_in_line(source, now);
    agenda_.set(2 * num_lanes_ + destination, now);
  }

  void arrive(std::int32_t message, Time now) {
    state_[message] = MessageState::Arrived;
    run_.message_end[message] = now;
    run_.makespan = std::max(run_.makespan, now);
    if (!is_awaited_[message]) return;
    const std::int32_t lane = wiring_.channels[wiring_.messages[message].channel].destination;
    if (--lanes_[lane].num_missing == 0) wake(lane, now);
  }

  void free_slots(const Op& op, Time now) {
    for (std::int32_t i = op.begin; i < op.end; ++i) {
      const std::int32_t channel = wiring_.messages[wiring_.received[i]].channel;
      ++num_received_[channel];
      const std::int32_t waiting = waits_for_slot_[channel];
      if (waiting >= 0 && may_post(waiting)) post_waiting(waiting, now);
    }
  }

  std::int32_t lane_of(std::int32_t action) const {
    const auto after = std::upper_bound(wiring_.lane_begin.begin(), wiring_.lane_begin.end(), action);
    return static_cast<std::int32_t>(after - wiring_.lane_begin.begin()) - 1;
  }

  // What the lane waits for first, in the order of its messages or of its gang's lanes.
  Wait wait_of(std::int32_t lane) const {
    const std::int32_t action = lanes_[lane].next;
    const Op& op = wiring_.ops[action];
    if (op.type == OpType::Gang) {
      for (const std::int32_t other : wiring_.gangs[op.begin]) {
        const std::int32_t member = lane_of(other);
        if (lanes_[member].next != other) return {lane, action, member, other};
      }
    }
    for (std::int32_t i = op.begin; i < op.end; ++i) {
      const std::int32_t index = op.type == OpType::Send ? i : wiring_.received[i];
      const Message& message = wiring_.messages[index];
      const Channel& channel = wiring_.channels[message.channel];
      if (op.type == OpType::Receive && state_[index] != MessageState::Arrived) {
        return {lane, action, channel.source, message.send};
      }
      if (op.type == OpType::Send && state_[index] == MessageState::WaitsForSlot) {
        return {lane, action, channel.destination, slot_holder(message)};
      }
    }
    throw std::logic_error("a lane waits for nothing");
  }

  // The RECV that gives the message its slot.
  std::int32_t slot_holder(const Message& message) const {
    if (costs_.is_rendezvous) return message.receive;
    for (const Message& other : wiring_.messages) {
      if (other.channel == message.channel && other.sequence == num_received_[message.channel]) return other.receive;
    }
    throw std::logic_error("a channel without slots");
  }

  const Wiring& wiring_;
  const Costs& costs_;
  const std::int32_t num_microbatches_;
  const std::int32_t num_lanes_;
  Agenda agenda_;
  std::vector<LaneState> lanes_;
  std::vector<MessageState> state_;
  std::vector<bool> is_awaited_;  // its RECV is reached
  std::vector<Time> post_time_;
  std::vector<std::int64_t> num_posted_, num_received_;  // per channel
  std::vector<std::int32_t> waits_for_slot_;             // per channel the message of a SEND that holds its lane, or -1
  std::vector<std::int32_t> gang_arrived_;
  Run run_;
};

void check_costs(const Wiring& wiring, const Costs& costs, std::int32_t num_names, std::int32_t num_microbatches) {
  const auto num_keys = 2 * static_cast<std::size_t>(num_names);
  if (costs.durations.size() != wiring.ops.size() || costs.slots.size() != num_keys ||
      costs.message_times.size() != num_keys * static_cast<std::size_t>(num_microbatches)) {
    throw std::invalid_argument("costs: the arrays do not fit the program");
  }
  const auto is_negative = [](Time time) { return time < 0; };
  if (std::any_of(costs.durations.begin(), costs.durations.end(), is_negative) ||
      std::any_of(costs.message_times.begin(), costs.message_times.end(), is_negative)) {
    throw std::invalid_argument("costs: a time is negative");
  }
}

}  // namespace

Run run(const Wiring& wiring, const Costs& costs, std::int32_t num_names, std::int32_t num_microbatches) {
  check_costs(wiring, costs, num_names, num_microbatches);
  return Simulation(wiring, costs, num_names, num_microbatches).run();
}

}  // namespace hetsched
