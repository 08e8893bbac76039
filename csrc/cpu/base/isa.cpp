#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace ffmef {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    default: return "portable";
  }
}

static Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#elif defined(__aarch64__)
  return Isa::neon;
#endif
  return Isa::portable;
}

Isa active_isa() {
  static const Isa isa = [] {
    const Isa best = best_isa();
    const char* wish = std::getenv("FFMEF_ISA");
    if (wish == nullptr) return best;
    if (std::strcmp(wish, "portable") == 0) return Isa::portable;
    // Only lower the set: one that the machine lacks would raise an illegal instruction.
    if (std::strcmp(wish, "avx2") == 0 && best == Isa::avx512) return Isa::avx2;
    return best;
  }();
  return isa;
}

}  // namespace ffmef
