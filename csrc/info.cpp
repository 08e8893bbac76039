// Facts about the build for `ffmef info`; it handles no tensors.
#include <pybind11/pybind11.h>

#include "cpu/base/isa.h"

#ifndef FFMEF_TORCH_BUILD_VERSION
#define FFMEF_TORCH_BUILD_VERSION "unknown"
#endif

static const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

PYBIND11_MODULE(_info, m) {
  m.doc() = "Facts about the native build.";
  m.def("isa", [] { return ffmef::isa_name(ffmef::active_isa()); }, "Instruction set that the CPU kernels use here.");
  m.attr("compiler") = compiler();
  m.attr("cxx_standard") = __cplusplus / 100 % 100;
  m.attr("torch_headers") = FFMEF_TORCH_BUILD_VERSION;
}
