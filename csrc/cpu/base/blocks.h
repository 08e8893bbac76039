// Splits outputs and rows for kernels that hold several outputs at several vectors of pixels in registers. Only kernel
// files include this header; it has internal linkage for the reason given in vec.h.
#pragma once
#include <cstdint>

#include "vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Calls work.template operator()<OUT>(o) for blocks of outputs that share the loaded pixels: blocks of five if five
// divides the count (as for the 25 taps of a 5 x 5 kernel), otherwise blocks of four, then single outputs.
template <class Work> inline void in_blocks(int64_t count, const Work& work) {
  int64_t o = 0;
  if (count % 5 == 0)
    for (; o < count; o += 5) work.template operator()<5>(o);
  for (; o + 4 <= count; o += 4) work.template operator()<4>(o);
  for (; o < count; ++o) work.template operator()<1>(o);
}

inline int64_t round_up(int64_t n) {
  constexpr int64_t kLanes = lanes<float>;
  return (n + kLanes - 1) / kLanes * kLanes;
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
