// Where each result of a program is made, sent and received.
//
// A *site* is a stage of a module, or one end of a boundary edge, with the lanes that it lies on. A *link* joins the
// sites between which results move: stage to next stage, or a producer's last stage to a consumer's stage.
#pragma once

#include "core/program.h"

namespace hetsched {

struct Site {
  std::vector<std::vector<std::int32_t>> gangs;
  Lanes lanes;                         // ascending
  std::vector<std::int32_t> rank_of;   // [num_lanes], index into lanes or -1
  std::vector<std::int32_t> gang_of;   // [lanes.size()]
  std::int32_t module;
  std::size_t row;                     // first row of the table of actions
};

struct Link {
  std::int32_t name;
  std::int32_t up, down;                  // sites where the transfers happen
  std::int32_t up_stage, down_stage;      // sites of the compute actions
  bool has_backward;
  bool is_local;                          // handed over on the lane, without a transfer
  std::vector<Lanes> down_of, up_of;      // for each lane of one end, the lanes of the other that it talks with
  std::size_t channel;                    // first channel: forward, then backward, by (up rank, down rank)
};

class Sites {
 public:
  // Places every action of the program. Throws a Fault at one that has no place, or whose place is taken.
  explicit Sites(const Program& program);

  std::int32_t num_stage_sites() const { return num_stage_sites_; }
  std::int32_t stage_site(std::int32_t module, std::int32_t stage) const { return stage_base_[module] + stage; }
  // The site of a part that passed the constructor's checks.
  std::int32_t site_of(const Part& part) const;
  const Site& site(std::int32_t index) const { return sites_[index]; }

  const std::vector<Link>& links() const { return links_; }
  std::size_t num_channels() const { return num_channels_; }
  // Links by the stage that they leave and the stage that they enter.
  const std::vector<std::int32_t>& links_from(std::int32_t stage_site) const { return from_[stage_site]; }
  const std::vector<std::int32_t>& links_into(std::int32_t stage_site) const { return into_[stage_site]; }
  // The link that a transfer uses, or null if there is none at that end of the module.
  const Link* link_of(const Part& transfer) const;

  // The action that does `kind` for the microbatch at a site on a lane, or -1.
  std::int32_t find(std::int32_t site, Kind kind, std::int32_t lane, std::int32_t microbatch) const;
  bool runs(std::int32_t site, std::int32_t lane, std::int32_t microbatch) const {
    return find(site, Kind::F, lane, microbatch) >= 0;
  }
  // The lanes at the other end that run the forward of the microbatch, if this lane does.
  Lanes peers(const Link& link, bool is_down, std::int32_t lane, std::int32_t microbatch) const;

 private:
  void add_site(std::int32_t module, const std::vector<Lanes>& gangs);
  void add_links();
  void add_link(Link link);
  void check_place(const Part& part, std::int32_t lane, std::int32_t action) const;
  void place(const Part& part, std::int32_t lane, std::int32_t action);
  std::size_t entry(const Site& site, Kind kind, std::int32_t rank, std::int32_t microbatch) const;

  const Program& program_;
  std::vector<Site> sites_;
  std::vector<std::int32_t> stage_base_;  // first site of each module
  std::int32_t num_stage_sites_ = 0;
  std::size_t num_rows_ = 0;
  std::size_t num_channels_ = 0;
  std::vector<Link> links_;
  std::vector<std::vector<std::int32_t>> from_, into_;
  std::vector<std::int32_t> link_of_edge_;
  std::vector<std::int32_t> action_;  // [num_rows, kind, microbatch]
};

}  // namespace hetsched
