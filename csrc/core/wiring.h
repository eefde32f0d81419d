// A sound program as what its lanes do to each other: messages on channels, and gangs.
#pragma once

#include "core/sites.h"

namespace hetsched {

// One (link, direction, source lane, destination lane). Messages keep their order.
struct Channel {
  std::int32_t name;
  Direction direction;
  std::int32_t source;
  std::int32_t destination;
  bool is_local() const { return source == destination; }
};

struct Message {
  std::int32_t channel;
  std::int32_t sequence;  // on its channel
  std::int32_t microbatch;
  std::int32_t send;  // action
  std::int32_t receive;
};

enum class OpType : std::int32_t { Compute, Gang, Send, Receive };

// What the engine does at an action; begin..end are indices into messages (Send), into received (Receive), or begin
// is the gang (Gang).
struct Op {
  OpType type = OpType::Compute;
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

struct Wiring {
  std::vector<std::int32_t> lane_begin;
  std::vector<Op> ops;
  std::vector<Channel> channels;
  std::vector<Message> messages;        // those of one SEND lie together
  std::vector<std::int32_t> received;   // messages, those of one RECV together
  std::vector<std::vector<std::int32_t>> gangs;  // the actions that start together, one per lane
  std::int32_t num_lanes() const { return static_cast<std::int32_t>(lane_begin.size()) - 1; }
};

// Throws a Fault for a RECV whose message carries another microbatch than it wants, and for an action of a gang
// that is missing on one of its lanes.
Wiring wire(const Program& program, const Sites& sites);

}  // namespace hetsched
