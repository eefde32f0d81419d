#include "check.h"

int main() {
  for (const check::Case& test : check::cases()) {
    const int before = check::num_failures();
    test.run();
    std::printf("%s %s\n", check::num_failures() == before ? "ok    " : "FAILED", test.name);
  }
  return check::num_failures() == 0 ? 0 : 1;
}
