// The few macros that the core's unit tests need: TEST registers a case, CHECK and CHECK_THROWS record failures.
#pragma once

#include <cstdio>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& num_failures() {
  static int count = 0;
  return count;
}

inline bool add(const char* name, void (*run)()) {
  cases().push_back({name, run});
  return true;
}

inline void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  ++num_failures();
}

}  // namespace check

#define TEST(name)                                                        \
  static void name();                                                     \
  [[maybe_unused]] static const bool name##_added = check::add(#name, name); \
  static void name()

#define CHECK(...)                                                 \
  do {                                                             \
    if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, #__VA_ARGS__); \
  } while (false)

#define CHECK_THROWS(exception, ...)                                               \
  do {                                                                             \
    bool has_thrown = false;                                                       \
    try {                                                                          \
      static_cast<void>(__VA_ARGS__);                                              \
    } catch (const exception&) {                                                   \
      has_thrown = true;                                                           \
    }                                                                              \
    if (!has_thrown) check::fail(__FILE__, __LINE__, #__VA_ARGS__ " throws " #exception); \
  } while (false)
