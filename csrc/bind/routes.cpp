#include "core/routes.h"

#include <pybind11/numpy.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"

namespace hetsched {
namespace {

namespace py = pybind11;
using Array = py::array_t<std::int64_t, py::array::c_style>;

// Rows of int64 columns are copied as records: each record is exactly its columns.
template <typename Record>
constexpr py::ssize_t num_columns() {
  static_assert(sizeof(Record) % sizeof(std::int64_t) == 0);
  return sizeof(Record) / sizeof(std::int64_t);
}

template <typename Record>
std::vector<Record> records(const Array& array, const char* name) {
  if (array.ndim() != 2 || array.shape(1) != num_columns<Record>()) {
    throw std::invalid_argument(std::string(name) + ": expected shape [n, " + std::to_string(num_columns<Record>()) +
                                "]");
  }
  std::vector<Record> result(static_cast<std::size_t>(array.shape(0)));
  if (!result.empty()) std::memcpy(result.data(), array.data(), result.size() * sizeof(Record));
  return result;
}

// The list itself, as an array that owns it.
Array to_array(std::vector<Segment> segments) {
  auto* kept = new std::vector<Segment>(std::move(segments));
  const py::capsule owner(kept, [](void* list) { delete static_cast<std::vector<Segment>*>(list); });
  return Array({static_cast<py::ssize_t>(kept->size()), num_columns<Segment>()},
               reinterpret_cast<const std::int64_t*>(kept->data()), owner);
}

Boundary boundary_of(const Array& uses, const Array& producers, const Array& consumers, const Array& host_of) {
  return {records<UseRun>(uses, "uses"), records<HolderRun>(producers, "producers"),
          records<HolderRun>(consumers, "consumers"),
          std::vector<std::int64_t>(host_of.data(), host_of.data() + host_of.size())};
}

}  // namespace

void bind_routes(py::module_& module) {
  module.def(
      "forward_route",
      [](const Array& uses, const Array& producers, const Array& consumers, const Array& host_of) {
        return to_array(forward_route(boundary_of(uses, producers, consumers, host_of)));
      },
      py::arg("uses"), py::arg("producers"), py::arg("consumers"), py::arg("host_of"));
  module.def(
      "backward_route",
      [](const Array& uses, const Array& producers, const Array& consumers, const Array& host_of, bool partial) {
        return to_array(backward_route(boundary_of(uses, producers, consumers, host_of), partial));
      },
      py::arg("uses"), py::arg("producers"), py::arg("consumers"), py::arg("host_of"), py::arg("partial"));
}

}  // namespace hetsched
