// The element types of tensors, and a switch over them for kernel files.
#pragma once

namespace ffmef {

enum class Scalar { f64, f32, f16, bf16 };

// Runs `call` with T as the storage type (Half and BFloat16 are vec.h's, so each instruction set has its own).
#define FFMEF_BY_SCALAR(scalar, call)                       \
  switch (scalar) {                                         \
    case Scalar::f64: { using T = double; call; break; }    \
    case Scalar::f32: { using T = float; call; break; }     \
    case Scalar::f16: { using T = Half; call; break; }      \
    case Scalar::bf16: { using T = BFloat16; call; break; } \
  }

// Runs `call` with A as the type in which sums of such values are kept.
#define FFMEF_BY_SUMS(scalar, call)  \
  if ((scalar) == Scalar::f64) {     \
    using A = double;                \
    call;                            \
  } else {                           \
    using A = float;                 \
    call;                            \
  }

}  // namespace ffmef
