// The instruction set in use on this machine: every kernel file is compiled once for each set.
#pragma once

namespace ffmef {

enum class Isa { portable, avx2, avx512, neon };

// The best set that both this machine and this build have. Tests lower it with the environment variable FFMEF_ISA.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace ffmef

#if defined(__x86_64__)
#define FFMEF_DECLARE_KERNELS(Table, name)        \
  namespace portable { extern const Table name; } \
  namespace avx2 { extern const Table name; }     \
  namespace avx512 { extern const Table name; }
#define FFMEF_KERNELS(name)                                   \
  (::ffmef::active_isa() == ::ffmef::Isa::avx512 ? avx512::name \
   : ::ffmef::active_isa() == ::ffmef::Isa::avx2 ? avx2::name   \
                                                 : portable::name)
#elif defined(__aarch64__)
#define FFMEF_DECLARE_KERNELS(Table, name)        \
  namespace portable { extern const Table name; } \
  namespace neon { extern const Table name; }
#define FFMEF_KERNELS(name) (::ffmef::active_isa() == ::ffmef::Isa::neon ? neon::name : portable::name)
#else
#define FFMEF_DECLARE_KERNELS(Table, name) \
  namespace portable { extern const Table name; }
#define FFMEF_KERNELS(name) (portable::name)
#endif
