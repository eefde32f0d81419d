#include "core/packing.h"

#include <pybind11/numpy.h>

#include <cstring>
#include <vector>

#include "bind/bind.h"
#include "core/dispatch.h"
#include "core/tokens.h"

namespace hetsched {
namespace {

namespace py = pybind11;
using Array = py::array_t<std::int64_t, py::array::c_style>;

std::vector<std::int64_t> to_vector(const Array& array) { return {array.data(), array.data() + array.size()}; }

Array to_array(const std::vector<std::int64_t>& values) {
  return Array(static_cast<py::ssize_t>(values.size()), values.data());
}

Array to_array(const std::vector<HolderRun>& runs) {
  static_assert(sizeof(HolderRun) == 4 * sizeof(std::int64_t));
  Array result({static_cast<py::ssize_t>(runs.size()), py::ssize_t{4}});
  if (!runs.empty()) std::memcpy(result.mutable_data(), runs.data(), runs.size() * sizeof(HolderRun));
  return result;
}

}  // namespace

void bind_packing(py::module_& module) {
  module.def(
      "pack_best_fit",
      [](const Array& lengths, std::int64_t capacity) { return to_array(pack_best_fit(to_vector(lengths), capacity)); },
      py::arg("lengths"), py::arg("capacity"));
  module.def(
      "pack_in_order",
      [](const Array& lengths, std::int64_t capacity) { return to_array(pack_in_order(to_vector(lengths), capacity)); },
      py::arg("lengths"), py::arg("capacity"));
  module.def(
      "spread_zigzag",
      [](std::int64_t num_tokens, std::int64_t cp, std::int64_t sp) {
        return to_array(spread_zigzag(num_tokens, {cp, sp}));
      },
      py::arg("num_tokens"), py::arg("cp"), py::arg("sp"));
  module.def(
      "plan_tokens",
      [](const Array& cu_seqlens, std::int64_t cp, std::int64_t sp, std::int64_t shortest_cut, std::int64_t quadratic,
         std::int64_t linear) {
        return to_array(plan_tokens(to_vector(cu_seqlens), {cp, sp}, shortest_cut, {quadratic, linear}));
      },
      py::arg("cu_seqlens"), py::arg("cp"), py::arg("sp"), py::arg("shortest_cut"), py::arg("quadratic"),
      py::arg("linear"));
}

}  // namespace hetsched
