// One vector of floats or doubles, as wide as the instruction set that this file is compiled for allows. Only
// *_kernels.cpp files include it. Everything here has internal linkage: the same names are compiled with different
// instructions, and the linker must never merge them.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define FFMEF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FFMEF_VECTOR_BYTES 32
#else
#define FFMEF_VECTOR_BYTES 16
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ffmef {
namespace FFMEF_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

typedef float FloatVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
typedef double DoubleVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
typedef int32_t IntVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
typedef uint32_t UIntVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
typedef uint16_t UShortVec __attribute__((vector_size(FFMEF_VECTOR_BYTES / 2), may_alias));

// Storage type -> the type of sums, and its vector.
template <class T> struct Accumulator {
  using type = float;
  using vec = FloatVec;
};
template <> struct Accumulator<double> {
  using type = double;
  using vec = DoubleVec;
};
template <class T> using Acc = typename Accumulator<T>::type;
template <class T> using Vec = typename Accumulator<T>::vec;
template <class T> constexpr int lanes = FFMEF_VECTOR_BYTES / int(sizeof(Acc<T>));

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline float to_acc(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Multiplication shifts the exponent, which is right for subnormals too. Infinities and NaN keep their top exponent.
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = uint32_t(x.bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return bits_to_float(sign | 0x70000000u | rest);
  return bits_to_float(sign | float_to_bits(bits_to_float(rest) * bits_to_float(0x77800000u)));
#endif
}

inline void from_acc(float x, float& out) { out = x; }
inline void from_acc(double x, double& out) { out = x; }
inline void from_acc(float x, BFloat16& out) {
  const uint32_t bits = float_to_bits(x);
  out.bits = x != x ? 0x7fc0u : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void from_acc(float x, Half& out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(x, 0);
#else
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) {
    out.bits = uint16_t(sign | 0x7e00u);
    return;
  }
  if (rest >= 0x477ff000u) {
    out.bits = uint16_t(sign | 0x7c00u);
    return;
  }  // rounds beyond 65504
  if (rest < 0x38800000u) {  // subnormal half: adding 0.5 lets the float adder round to nearest even
    out.bits = uint16_t(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u));
    return;
  }
  out.bits = uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13));
#endif
}

inline FloatVec load(const float* p) {
  FloatVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline DoubleVec load(const double* p) {
  DoubleVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline FloatVec load(const BFloat16* p) {
  UShortVec s;
  std::memcpy(&s, p, sizeof s);
  const UIntVec wide = __builtin_convertvector(s, UIntVec) << 16;
  return (FloatVec)wide;
}
inline FloatVec load(const Half* p) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (FloatVec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__ARM_NEON)
  return (FloatVec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
#else
  float buffer[lanes<Half>];
  for (int i = 0; i < lanes<Half>; ++i) buffer[i] = to_acc(p[i]);
  return load(buffer);
#endif
}

inline void store(float* p, FloatVec v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, DoubleVec v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, FloatVec v) {
  const UIntVec bits = (UIntVec)v;
  const UIntVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UIntVec nan = (UIntVec)(v != v);
  const UShortVec s = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), UShortVec);
  std::memcpy(p, &s, sizeof s);
}
inline void store(Half* p, FloatVec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  float buffer[lanes<Half>];
  store(buffer, v);
  for (int i = 0; i < lanes<Half>; ++i) from_acc(buffer[i], p[i]);
#endif
}

// The first n elements, then zeros: at the end of a row a whole vector could reach beyond the tensor.
template <class T> inline Vec<T> load_part(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#endif
  T buffer[lanes<T>];
  std::memset(buffer, 0, sizeof buffer);
  std::memcpy(buffer, p, size_t(n) * sizeof(T));
  return load(buffer);
}
template <class T> inline void store_part(T* p, Vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#endif
  T buffer[lanes<T>];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(n) * sizeof(T));
}

// Writes past the caches, for results that exceed them: lines are not read before they are written, and what is cached
// stays. p must be aligned to a vector. Call end_streams() before another thread reads.
template <class T> inline void stream(T* p, Vec<T> v) {
  static_assert(sizeof(T) == sizeof(Acc<T>), "half a line at a time is slower than store()");
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  store(p, v);
#endif
}
inline void end_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Minus zero: adding +0 turns -0 into 0, so the compiler would have to keep the addition.
inline FloatVec splat(float x) { return x - FloatVec{}; }
inline DoubleVec splat(double x) { return x - DoubleVec{}; }

// e^x to about two units in the last place, for |x| <= 87.
inline FloatVec exponential(FloatVec x) {
  const FloatVec limit = splat(87.0f);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  // 2^n exp(r), |r| <= ln(2) / 2; adding and subtracting 1.5 * 2^23 rounds to a whole number.
  const FloatVec shifter = splat(12582912.0f);
  const FloatVec shifted = x * 1.44269504f + shifter;
  const FloatVec n = shifted - shifter;
  const FloatVec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  FloatVec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = ((IntVec)shifted - 0x4b400000 + 127) << 23;
  return p * (FloatVec)exponent;
}

// Sums in lane order, so the result does not depend on how the compiler pairs lanes.
template <class V> inline double sum_lanes(V v) {
  double total = 0;
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); ++i) total += double(v[i]);
  return total;
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
