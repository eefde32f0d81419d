#include "core/lower_bound.h"

#include <algorithm>
#include <map>
#include <queue>

namespace hetsched {
namespace {

struct Arrow {
  std::int32_t from;
  std::int32_t to;
  Time time;
};

// Actions and what they need from one another, without the order of the lanes. The actions of a gang are one node.
class Graph {
 public:
  Graph(const Program& program, const Sites& sites, const Wiring& wiring, const Costs& costs)
      : program_(program), sites_(sites), wiring_(wiring), costs_(costs), node_of_(program.num_actions()) {
    for (std::int32_t action = 0; action < program.num_actions(); ++action) node_of_[action] = action;
    for (const std::vector<std::int32_t>& gang : wiring.gangs) {
      for (const std::int32_t action : gang) node_of_[action] = gang[0];
    }
    duration_.assign(program.num_actions(), 0);
    for (std::int32_t action = 0; action < program.num_actions(); ++action) {
      if (is_transfer(first_part(action).kind)) continue;
      Time& duration = duration_[node_of_[action]];
      duration = std::max(duration, costs.durations[action]);
    }
    add_arrows();
    find_paths();
  }

  const Part& first_part(std::int32_t action) const { return program_.parts[program_.part_begin[action]]; }
  std::int32_t node_of(std::int32_t action) const { return node_of_[action]; }
  Time duration(std::int32_t action) const { return duration_[node_of_[action]]; }
  Time head(std::int32_t action) const { return head_[node_of_[action]]; }
  Time tail(std::int32_t action) const { return tail_[node_of_[action]]; }

  // An item may go to any gang of its stage.
  bool is_movable(std::int32_t stage_site) const {
    const Site& site = sites_.site(stage_site);
    return program_.modules[site.module].takes_items && site.gangs.size() > 1;
  }

  // The site whose lanes a compute action may choose from, or null if it is bound to its own.
  const Site* choice_of(std::int32_t action) const {
    const bool is_single = program_.part_begin[action + 1] - program_.part_begin[action] == 1;
    const Part& part = first_part(action);
    if (!is_single || !is_compute(part.kind) || !is_movable(sites_.site_of(part))) return nullptr;
    return &sites_.site(sites_.site_of(part));
  }

 private:
  void add_arrows() {
    for (const Message& message : wiring_.messages) add_message(message);
    for (std::int32_t lane = 0; lane < program_.num_lanes; ++lane) {
      for (std::int32_t action = program_.lane_begin[lane]; action < program_.lane_begin[lane + 1]; ++action) {
        for (std::int32_t p = program_.part_begin[action]; p < program_.part_begin[action + 1]; ++p) {
          add_local(program_.parts[p], lane, action);
        }
      }
    }
  }

  void add_arrow(std::int32_t from, std::int32_t to, Time time) {
    if (from < 0 || to < 0 || node_of_[from] == node_of_[to]) return;
    arrows_.push_back({node_of_[from], node_of_[to], time});
  }

  std::int32_t input_gradient(std::int32_t site, std::int32_t lane, std::int32_t m) const {
    return std::max(sites_.find(site, Kind::B, lane, m), sites_.find(site, Kind::I, lane, m));
  }

  void add_message(const Message& message) {
    const Channel& channel = wiring_.channels[message.channel];
    const Link& link = *sites_.link_of(first_part(message.send));
    const std::int32_t m = message.microbatch;
    const Time time = message_time(message, channel, link);
    if (channel.direction == Direction::Forward) {
      add_arrow(sites_.find(link.up_stage, Kind::F, channel.source, m),
                sites_.find(link.down_stage, Kind::F, channel.destination, m), time);
    } else {
      add_arrow(input_gradient(link.down_stage, channel.source, m),
                input_gradient(link.up_stage, channel.destination, m), time);
    }
  }

  Time message_time(const Message& message, const Channel& channel, const Link& link) const {
    const Lanes& up = sites_.site(link.up_stage).lanes;
    const Lanes& down = sites_.site(link.down_stage).lanes;
    const bool is_fixed = !is_movable(link.up_stage) && !is_movable(link.down_stage);
    const auto on_down = [&down](std::int32_t lane) { return std::binary_search(down.begin(), down.end(), lane); };
    if (is_fixed ? channel.is_local() : std::any_of(up.begin(), up.end(), on_down)) return 0;
    const std::size_t key = 2 * static_cast<std::size_t>(channel.name) + static_cast<std::size_t>(channel.direction);
    return costs_.message_times[key * static_cast<std::size_t>(program_.num_microbatches) +
                                static_cast<std::size_t>(message.microbatch)];
  }

  void add_local(const Part& part, std::int32_t lane, std::int32_t action) {
    if (is_transfer(part.kind) || part.kind == Kind::Unshard || part.kind == Kind::Reshard) return;
    const std::int32_t site = sites_.site_of(part);
    if (part.kind == Kind::ReduceGrad) {
      for (std::int32_t m = 0; m < program_.num_microbatches; ++m) {
        add_arrow(sites_.find(site, Kind::B, lane, m), action, 0);
        add_arrow(sites_.find(site, Kind::W, lane, m), action, 0);
      }
    }
    for (std::int32_t m = part.first; m <= part.last; ++m) {
      if (part.kind == Kind::W) {
        add_arrow(sites_.find(site, Kind::I, lane, m), action, 0);
        continue;
      }
      if (part.kind != Kind::F) add_arrow(sites_.find(site, Kind::F, lane, m), action, 0);
      for (const std::int32_t index : part.kind == Kind::F ? sites_.links_into(site) : sites_.links_from(site)) {
        const Link& link = sites_.links()[index];
        if (!link.is_local) continue;
        const std::int32_t from = part.kind == Kind::F ? sites_.find(link.up_stage, Kind::F, lane, m)
                                                       : input_gradient(link.down_stage, lane, m);
        add_arrow(from, action, 0);
      }
    }
  }

  // Heads and tails: the longest paths into and out of each node, its own duration apart.
  void find_paths() {
    const auto num_nodes = static_cast<std::size_t>(program_.num_actions());
    std::vector<std::int32_t> begin(num_nodes + 1, 0), num_open(num_nodes, 0);
    for (const Arrow& arrow : arrows_) ++begin[arrow.from + 1], ++num_open[arrow.to];
    for (std::size_t node = 0; node < num_nodes; ++node) begin[node + 1] += begin[node];
    std::vector<std::int32_t> position(begin.begin(), begin.end() - 1), sorted(arrows_.size());
    for (std::size_t i = 0; i < arrows_.size(); ++i) sorted[position[arrows_[i].from]++] = static_cast<std::int32_t>(i);
    std::vector<std::int32_t> order;
    for (std::size_t node = 0; node < num_nodes; ++node) {
      if (num_open[node] == 0) order.push_back(static_cast<std::int32_t>(node));
    }
    head_.assign(num_nodes, 0);
    tail_.assign(num_nodes, 0);
    for (std::size_t next = 0; next < order.size(); ++next) {
      const std::int32_t node = order[next];
      for (std::int32_t i = begin[node]; i < begin[node + 1]; ++i) {
        const Arrow& arrow = arrows_[sorted[i]];
        head_[arrow.to] = std::max(head_[arrow.to], head_[node] + duration_[node] + arrow.time);
        if (--num_open[arrow.to] == 0) order.push_back(arrow.to);
      }
    }
    for (auto node = order.rbegin(); node != order.rend(); ++node) {
      for (std::int32_t i = begin[*node]; i < begin[*node + 1]; ++i) {
        const Arrow& arrow = arrows_[sorted[i]];
        tail_[*node] = std::max(tail_[*node], arrow.time + duration_[arrow.to] + tail_[arrow.to]);
      }
    }
  }

  const Program& program_;
  const Sites& sites_;
  const Wiring& wiring_;
  const Costs& costs_;
  std::vector<std::int32_t> node_of_;
  std::vector<Time> duration_, head_, tail_;
  std::vector<Arrow> arrows_;
};

struct Job {
  Time head, duration, tail;
};

// One machine with preemption: at each time the job with the longest tail of those whose head has passed.
Time jackson(std::vector<Job> jobs) {
  std::sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.head < b.head; });
  std::priority_queue<std::pair<Time, Time>> ready;  // tail, what is left of the duration
  Time now = 0, end = 0;
  std::size_t next = 0;
  while (next < jobs.size() || !ready.empty()) {
    if (ready.empty()) now = std::max(now, jobs[next].head);
    for (; next < jobs.size() && jobs[next].head <= now; ++next) ready.push({jobs[next].tail, jobs[next].duration});
    const auto [tail, left] = ready.top();
    ready.pop();
    const Time until = next < jobs.size() ? std::min(now + left, jobs[next].head) : now + left;
    if (until < now + left) {
      ready.push({tail, now + left - until});
    } else {
      end = std::max(end, until + tail);
    }
    now = until;
  }
  return end;
}

Time smallest_gang(const Site& site) {
  std::size_t size = site.lanes.size();
  for (const Lanes& gang : site.gangs) size = std::min(size, gang.size());
  return static_cast<Time>(size);
}

}  // namespace

Time lower_bound(const Program& program, const Sites& sites, const Wiring& wiring, const Costs& costs) {
  const Graph graph(program, sites, wiring, costs);
  std::vector<Time> pinned(program.num_lanes, 0);
  std::map<Lanes, Time> movable;
  Time bound = 0;
  for (std::int32_t lane = 0; lane < program.num_lanes; ++lane) {
    std::vector<Job> jobs;
    for (std::int32_t action = program.lane_begin[lane]; action < program.lane_begin[lane + 1]; ++action) {
      if (is_transfer(graph.first_part(action).kind)) continue;
      const Job job{graph.head(action), graph.duration(action), graph.tail(action)};
      bound = std::max(bound, job.head + job.duration + job.tail);
      if (const Site* site = graph.choice_of(action)) {
        if (graph.node_of(action) == action) movable[site->lanes] += job.duration * smallest_gang(*site);
      } else {
        pinned[lane] += job.duration;
        jobs.push_back(job);
      }
    }
    bound = std::max(bound, jackson(std::move(jobs)));
  }
  for (const auto& [lanes, unused] : movable) {
    Time work = 0;
    for (const std::int32_t lane : lanes) work += pinned[lane];
    for (const auto& [others, time] : movable) {
      if (std::includes(lanes.begin(), lanes.end(), others.begin(), others.end())) work += time;
    }
    const auto num_lanes = static_cast<Time>(lanes.size());
    bound = std::max(bound, (work + num_lanes - 1) / num_lanes);
  }
  return bound;
}

}  // namespace hetsched
