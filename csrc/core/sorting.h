// Sorting where the input is nearly always sorted already, or its keys are small integers.
#pragma once

#include <algorithm>
#include <cstddef>
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
template <typename Item, typename LabelOf>
Groups<Item> group_by(const std::vector<Item>& items, LabelOf label_of) {
  const auto label = [&](const Item& item) { return static_cast<std::size_t>(label_of(item)); };
  std::size_t num_labels = 0;
  for (const Item& item : items) num_labels = std::max(num_labels, label(item) + 1);
  Groups<Item> groups{std::vector<Item>(items.size()), std::vector<std::size_t>(num_labels + 1)};
  for (const Item& item : items) ++groups.starts[label(item) + 1];
  for (std::size_t l = 0; l < num_labels; ++l) groups.starts[l + 1] += groups.starts[l];
  std::vector<std::size_t> next = groups.starts;
  for (const Item& item : items) groups.items[next[label(item)]++] = item;
  return groups;
}

}  // namespace hetsched
