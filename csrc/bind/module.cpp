#include "bind/bind.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled part of what decides; hetsched/_core.pyi has the signatures.";
  hetsched::bind_assign(module);
  hetsched::bind_engine(module);
  hetsched::bind_packing(module);
  hetsched::bind_routes(module);
}
