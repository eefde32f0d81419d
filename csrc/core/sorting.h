// Sorting where the input is nearly always sorted already, or its keys are small integers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

namespace hetsched {

template <typename Iterator, typename Less>
void sort_unless_sorted(Iterator first, Iterator last, Less less) {
  if (!std::is_sorted(first, last, less)) std::sort(first, last, less);
}

// Items put together by label: those of label l are items[starts[l]] .. items[starts[l + 1] - 1].
template <typename Item>
struct Groups {
  std::vector<Item> items;
  std::vector<std::size_t> starts;
};

// Groups items by a label that is a small integer; within a group they keep their order.
template <typename Iterator, typename LabelOf>
auto group_by(Iterator first, Iterator last, LabelOf label_of) {
  using Item = typename std::iterator_traits<Iterator>::value_type;
  const auto label = [&](const Item& item) { return static_cast<std::size_t>(label_of(item)); };
  std::size_t num_labels = 0;
  for (auto item = first; item != last; ++item) num_labels = std::max(num_labels, label(*item) + 1);
  Groups<Item> groups{std::vector<Item>(static_cast<std::size_t>(last - first)),
                      std::vector<std::size_t>(num_labels + 1)};
  for (auto item = first; item != last; ++item) ++groups.starts[label(*item) + 1];
  for (std::size_t l = 0; l < num_labels; ++l) groups.starts[l + 1] += groups.starts[l];
  std::vector<std::size_t> next = groups.starts;
  for (auto item = first; item != last; ++item) groups.items[next[label(*item)]++] = *item;
  return groups;
}

}  // namespace hetsched
