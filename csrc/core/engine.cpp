#include "core/engine.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace hetsched {
namespace {

constexpr Time kNever = std::numeric_limits<Time>::max();

// The next time of each of a fixed number of events, and the earliest of them; ties go to the smaller index.
class Agenda {
 public:
  explicit Agenda(std::int32_t num_events) {
    while (width_ < num_events) width_ *= 2;
    time_.assign(width_, kNever);
    winner_.resize(2 * width_);
    for (std::int32_t i = 0; i < width_; ++i) winner_[width_ + i] = i;
    for (std::int32_t node = width_ - 1; node > 0; --node) winner_[node] = winner_[2 * node];
  }

  std::int32_t first() const { return winner_[1]; }
  Time time_of(std::int32_t event) const { return time_[event]; }

  void set(std::int32_t event, Time time) {
    time_[event] = time;
    for (std::int32_t node = (width_ + event) / 2; node > 0; node /= 2) {
      const std::int32_t left = winner_[2 * node], right = winner_[2 * node + 1];
      const std::int32_t winner = time_[left] <= time_[right] ? left : right;
      if (winner == winner_[node] && winner != event) return;
      winner_[node] = winner;
    }
  }

 private:
  std::int32_t width_ = 1;
  std::vector<Time> time_;
  std::vector<std::int32_t> winner_;
};

enum class Progress : std::uint8_t { Unsent, WaitsForSlot, Posted, Arrived };

struct MessageState {
  Time post_time = 0;
  Progress progress = Progress::Unsent;
  bool is_awaited = false;  // its RECV is reached
};

struct LaneState {
  std::int32_t next;  // action
  std::int32_t end;
  Time busy_until = 0;
  std::int32_t num_missing = 0;  // messages that the current SEND or RECV waits for
  bool is_entered = false;       // the current action has begun to wait
  bool is_sending = false;       // the send engine is busy
  bool is_receiving = false;
  bool is_choosing = false;      // its receive engine is to choose its next transfer
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
        agenda_(2 * num_lanes_),
        lanes_(num_lanes_),
        messages_(wiring.messages.size()),
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
      ready_.push_back(lane);
    }
  }

  Run run() {
    while (true) {
      work_off_now();
      now_ = agenda_.time_of(agenda_.first());
      if (now_ == kNever) break;
    }
    for (const LaneState& lane : lanes_) run_.stopped_at.push_back(lane.next);
    for (std::int32_t lane = 0; lane < num_lanes_; ++lane) {
      if (lanes_[lane].next < lanes_[lane].end) run_.waits.push_back(wait_of(lane));
    }
    return std::move(run_);
  }

 private:
  // Transfers that end and lanes that go on, in any order, until nothing more happens at this time; then
  // the receive engines that are free choose.
  void work_off_now() {
    while (true) {
      const std::int32_t event = agenda_.first();
      if (!ready_.empty()) {
        const std::int32_t lane = ready_.back();
        ready_.pop_back();
        advance(lane);
      } else if (agenda_.time_of(event) == now_) {
        agenda_.set(event, kNever);
        event < num_lanes_ ? end_transfer(event) : advance(event - num_lanes_);
      } else {
        for (const std::int32_t lane : choosing_) choose_transfer(lane);
        choosing_.clear();
        return;
      }
    }
  }

  void advance(std::int32_t lane) {
    LaneState& here = lanes_[lane];
    if (here.busy_until > now_) return;
    while (here.next < here.end) {
      const std::int32_t action = here.next;
      const Op& op = wiring_.ops[action];
      if (op.type == OpType::Compute) {
        compute(lane, costs_.durations[action]);
        if (here.busy_until > now_) return;
      } else if (op.type == OpType::Gang) {
        if (!here.is_entered) enter_gang(lane, op.begin);
        return;
      } else {
        if (!here.is_entered) {
          here.is_entered = true;
          run_.start[action] = now_;
          op.type == OpType::Send ? enter_send(lane, op) : enter_receive(lane, op);
        }
        if (here.num_missing > 0) return;
        if (op.type == OpType::Receive) free_slots(op);
        leave(lane, now_);
      }
    }
  }

  void compute(std::int32_t lane, Time duration) {
    LaneState& here = lanes_[lane];
    run_.start[here.next] = now_;
    leave(lane, now_ + duration);
    if (duration == 0) return;
    here.busy_until = now_ + duration;
    agenda_.set(num_lanes_ + lane, here.busy_until);
  }

  void leave(std::int32_t lane, Time time) {
    run_.end[lanes_[lane].next++] = time;
    lanes_[lane].is_entered = false;
    run_.makespan = std::max(run_.makespan, time);
  }

  void enter_gang(std::int32_t lane, std::int32_t gang) {
    const std::vector<std::int32_t>& actions = wiring_.gangs[gang];
    lanes_[lane].is_entered = true;
    if (++gang_arrived_[gang] < static_cast<std::int32_t>(actions.size())) return;
    Time duration = 0;
    for (const std::int32_t action : actions) duration = std::max(duration, costs_.durations[action]);
    for (const std::int32_t action : actions) {
      const std::int32_t member = lane_of(action);
      compute(member, duration);
      if (duration == 0) ready_.push_back(member);
    }
  }

  void enter_send(std::int32_t lane, const Op& op) {
    for (std::int32_t message = op.begin; message < op.end; ++message) {
      if (may_post(message)) {
        post(message);
      } else {
        messages_[message].progress = Progress::WaitsForSlot;
        waits_for_slot_[wiring_.messages[message].channel] = message;
        ++lanes_[lane].num_missing;
      }
    }
  }

  void enter_receive(std::int32_t lane, const Op& op) {
    for (std::int32_t i = op.begin; i < op.end; ++i) {
      MessageState& message = messages_[wiring_.received[i]];
      message.is_awaited = true;
      if (message.progress == Progress::Arrived) continue;
      ++lanes_[lane].num_missing;
      if (costs_.is_rendezvous && message.progress == Progress::WaitsForSlot) post_waiting(wiring_.received[i]);
    }
  }

  bool may_post(std::int32_t message) const {
    const std::int32_t index = wiring_.messages[message].channel;
    const Channel& channel = wiring_.channels[index];
    if (costs_.is_rendezvous) return channel.is_local() || messages_[message].is_awaited;
    const std::int64_t slots = costs_.slots[key(channel)];
    return slots < 0 || num_posted_[index] - num_received_[index] < slots;
  }

  std::size_t key(const Channel& channel) const {
    return 2 * static_cast<std::size_t>(channel.name) + static_cast<std::size_t>(channel.direction);
  }

  void post_waiting(std::int32_t message) {
    const Channel& channel = wiring_.channels[wiring_.messages[message].channel];
    waits_for_slot_[wiring_.messages[message].channel] = -1;
    post(message);
    if (--lanes_[channel.source].num_missing == 0) ready_.push_back(channel.source);
  }

  void post(std::int32_t message) {
    const std::int32_t index = wiring_.messages[message].channel;
    const Channel& channel = wiring_.channels[index];
    std::int64_t& most = run_.max_in_flight[key(channel)];
    most = std::max<std::int64_t>(most, ++num_posted_[index] - num_received_[index]);
    messages_[message].progress = Progress::Posted;
    messages_[message].post_time = now_;
    if (time_of(message) == 0) {
      run_.message_start[message] = now_;
      return arrive(message, channel.destination);
    }
    LaneState& source = lanes_[channel.source];
    source.queue.push_back(message);
    if (!source.is_sending && source.queue.size() - source.queue_head == 1) stand_in_line(channel.source);
  }

  Time time_of(std::int32_t message) const {
    const Channel& channel = wiring_.channels[wiring_.messages[message].channel];
    if (channel.is_local()) return 0;
    return costs_.message_times[key(channel) * static_cast<std::size_t>(num_microbatches_) +
                                static_cast<std::size_t>(wiring_.messages[message].microbatch)];
  }

  std::int32_t head_of(std::int32_t source) const { return lanes_[source].queue[lanes_[source].queue_head]; }

  // The next message of the lane's send engine waits for its receive engine from now on.
  void stand_in_line(std::int32_t source) {
    const std::int32_t destination = wiring_.channels[wiring_.messages[head_of(source)].channel].destination;
    lanes_[destination].waiting.push_back(source);
    will_choose(destination);
  }

  void will_choose(std::int32_t destination) {
    if (lanes_[destination].is_choosing || lanes_[destination].is_receiving) return;
    lanes_[destination].is_choosing = true;
    choosing_.push_back(destination);
  }

  void choose_transfer(std::int32_t destination) {
    LaneState& here = lanes_[destination];
    here.is_choosing = false;
    const auto posted_first = [this](std::int32_t a, std::int32_t b) {
      const Time time_a = messages_[head_of(a)].post_time, time_b = messages_[head_of(b)].post_time;
      return time_a != time_b ? time_a < time_b : a < b;
    };
    const auto chosen = std::min_element(here.waiting.begin(), here.waiting.end(), posted_first);
    const std::int32_t source = *chosen;
    here.waiting.erase(chosen);
    here.is_receiving = lanes_[source].is_sending = true;
    run_.message_start[head_of(source)] = now_;
    agenda_.set(source, now_ + time_of(head_of(source)));
  }

  void end_transfer(std::int32_t source) {
    LaneState& lane = lanes_[source];
    const std::int32_t message = head_of(source);
    const std::int32_t destination = wiring_.channels[wiring_.messages[message].channel].destination;
    ++lane.queue_head;
    lane.is_sending = lanes_[destination].is_receiving = false;
    arrive(message, destination);
    if (lane.queue_head < lane.queue.size()) stand_in_line(source);
    if (!lanes_[destination].waiting.empty()) will_choose(destination);
  }

  void arrive(std::int32_t message, std::int32_t lane) {
    messages_[message].progress = Progress::Arrived;
    run_.message_end[message] = now_;
    if (messages_[message].is_awaited && --lanes_[lane].num_missing == 0) ready_.push_back(lane);
  }

  void free_slots(const Op& op) {
    for (std::int32_t i = op.begin; i < op.end; ++i) {
      const std::int32_t channel = wiring_.messages[wiring_.received[i]].channel;
      ++num_received_[channel];
      const std::int32_t waiting = waits_for_slot_[channel];
      if (waiting >= 0 && may_post(waiting)) post_waiting(waiting);
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
      if (op.type == OpType::Receive && messages_[index].progress != Progress::Arrived) {
        return {lane, action, channel.source, message.send};
      }
      if (op.type == OpType::Send && messages_[index].progress == Progress::WaitsForSlot) {
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
  Agenda agenda_;  // ends of transfers by source, then ends of actions by lane
  std::vector<LaneState> lanes_;
  Time now_ = 0;
  std::vector<std::int32_t> ready_;     // lanes that may go on now
  std::vector<std::int32_t> choosing_;  // lanes whose receive engine is free and has transfers to choose from
  std::vector<MessageState> messages_;
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
