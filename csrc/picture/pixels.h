// Converts vectors of pixels from and to interleaved RGB of any depth. Only *_kernels.cpp files include it (vec.h).
//
// With AVX-512, a vector is read from and written to memory with two or three shuffles. Otherwise, a run of pixels is
// first split into the planes of samples.h.
#pragma once
#include "../cpu/base/vec.h"
#include "samples.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// One vector instruction each. Without AVX-512, the compiler finds that instruction by itself.
inline FloatVec larger(FloatVec a, FloatVec b) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
inline FloatVec smaller(FloatVec a, FloatVec b) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
// Returns whether a and b differ in any lane.
inline bool any_differ(FloatVec a, FloatVec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NEQ_UQ)) != 0;
#else
  bool any = false;
  for (int i = 0; i < lanes<float>; ++i) any |= a[i] != b[i];
  return any;
#endif
}
// Returns whether a is less than b in any lane.
inline bool any_less(FloatVec a, FloatVec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
#else
  return any_differ(larger(b, a), a);
#endif
}
inline FloatVec unit(FloatVec x) { return smaller(larger(x, FloatVec{}), splat(1.0f)); }

// A value on the scale 0..255 times kOfByte, plus kRounding, is a sample, except that floating-point samples may lie
// beyond 0..1 by rounding.
template <class S> constexpr float kOfByte = 1.0f;
template <> constexpr float kOfByte<uint16_t> = 257.0f;
template <> constexpr float kOfByte<float> = 1.0f / 255;
template <class S> constexpr float kRounding = std::is_same_v<S, float> ? 0.0f : 0.5f;
template <class S> inline FloatVec in_range(FloatVec x) {
  if constexpr (std::is_same_v<S, float>) return unit(x);
  return x;
}

struct Rgb {
  FloatVec r, g, b;
};
inline Rgb equal(FloatVec grey) { return {grey, grey, grey}; }

constexpr int64_t kLanes = lanes<float>;

#if defined(__AVX512BW__)

// Spreads the 48 bytes of 16 pixels to 32 bits per pixel: first each 96 bits to 128, then each 24 bits to 32.
inline __m512i spread(__m512i packed) {
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(numbers, packed), bytes);
}
// The inverse of spread.
inline __m512i gathered(__m512i pixels) {
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 3, 3, 3);
  return _mm512_permutexvar_epi32(numbers, _mm512_shuffle_epi8(pixels, bytes));
}
inline uint64_t first_bits(int64_t n) { return n >= 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1; }

// Loads n pixels, at most 16; the remaining lanes are zero.
inline Rgb load_pixels(const uint8_t* p, int64_t n) {
  const __m512i pixels =
      spread(n == 16 ? _mm512_maskz_loadu_epi32(0x0fff, p) : _mm512_maskz_loadu_epi8(first_bits(3 * n), p));
  const __m512i byte = _mm512_set1_epi32(255);
  return {(FloatVec)_mm512_cvtepi32_ps(_mm512_and_si512(pixels, byte)),
          (FloatVec)_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(pixels, 8), byte)),
          (FloatVec)_mm512_cvtepi32_ps(_mm512_srli_epi32(pixels, 16))};
}
inline void store_pixels(uint8_t* p, int64_t n, const Rgb& scaled) {
  const __m512i r = _mm512_cvttps_epi32((__m512)scaled.r), g = _mm512_cvttps_epi32((__m512)scaled.g),
                b = _mm512_cvttps_epi32((__m512)scaled.b);
  const __m512i packed =
      gathered(_mm512_or_si512(r, _mm512_or_si512(_mm512_slli_epi32(g, 8), _mm512_slli_epi32(b, 16))));
  if (n == 16) return _mm512_mask_storeu_epi32(p, 0x0fff, packed);
  _mm512_mask_storeu_epi8(p, first_bits(3 * n), packed);
}

inline FloatVec load_grey(const uint8_t* p, int64_t n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16(first_bits(n)), p);
  return (FloatVec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
inline void store_grey(uint8_t* p, int64_t n, FloatVec scaled) {
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32((__m512)scaled));
  if (n == 16) return _mm_storeu_si128((__m128i*)p, bytes);
  _mm_mask_storeu_epi8(p, __mmask16(first_bits(n)), bytes);
}

inline Rgb load_pixels(const uint16_t* p, int64_t n) {
  const __m512i low = _mm512_maskz_loadu_epi16(__mmask32(first_bits(3 * n < 32 ? 3 * n : 32)), p);
  const __m512i high = _mm512_maskz_loadu_epi16(__mmask32(3 * n < 32 ? 0 : first_bits(3 * n - 32)), p + 32);
  alignas(64) static constexpr auto places = [] {
    struct {
      uint16_t of[3][32];
    } t{};
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 32; ++i) t.of[c][i] = uint16_t(i < 16 ? 3 * i + c : 0);
    return t;
  }();
  const auto channel = [&](int c) {
    const __m512i words = _mm512_permutex2var_epi16(low, _mm512_load_si512(places.of[c]), high);
    return (FloatVec)_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)));
  };
  return {channel(0), channel(1), channel(2)};
}
inline void store_pixels(uint16_t* p, int64_t n, const Rgb& scaled) {
  const auto words = [](FloatVec x) { return _mm512_cvtepi32_epi16(_mm512_cvttps_epi32((__m512)x)); };
  const __m512i two = _mm512_inserti64x4(_mm512_castsi256_si512(words(scaled.r)), words(scaled.g), 1);
  const __m512i third = _mm512_castsi256_si512(words(scaled.b));
  alignas(64) static constexpr auto places = [] {
    struct {
      uint16_t of[2][32];
    } t{};
    for (int i = 0; i < 48; ++i) t.of[i / 32][i % 32] = uint16_t(16 * (i % 3) + i / 3);
    return t;
  }();
  const __m512i low = _mm512_permutex2var_epi16(two, _mm512_load_si512(places.of[0]), third);
  const __m512i high = _mm512_permutex2var_epi16(two, _mm512_load_si512(places.of[1]), third);
  _mm512_mask_storeu_epi16(p, __mmask32(first_bits(3 * n < 32 ? 3 * n : 32)), low);
  _mm512_mask_storeu_epi16(p + 32, __mmask32(3 * n < 32 ? 0 : first_bits(3 * n - 32)), high);
}

inline FloatVec load_grey(const uint16_t* p, int64_t n) {
  const __m256i words = _mm256_maskz_loadu_epi16(__mmask16(first_bits(n)), p);
  return (FloatVec)_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(words));
}
inline void store_grey(uint16_t* p, int64_t n, FloatVec scaled) {
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_cvttps_epi32((__m512)scaled));
  if (n == 16) return _mm256_storeu_si256((__m256i*)p, words);
  _mm256_mask_storeu_epi16(p, __mmask16(first_bits(n)), words);
}

inline __mmask16 first_floats(int64_t n) { return n >= 16 ? __mmask16(0xffff) : n <= 0 ? 0 : __mmask16((1u << n) - 1); }
inline Rgb load_pixels(const float* p, int64_t n) {
  using Places = std::make_index_sequence<16>;
  const FloatVec a = (FloatVec)_mm512_maskz_loadu_ps(first_floats(3 * n), p),
                 b = (FloatVec)_mm512_maskz_loadu_ps(first_floats(3 * n - 16), p + 16),
                 c = (FloatVec)_mm512_maskz_loadu_ps(first_floats(3 * n - 32), p + 32);
  return {channel<0>(a, b, c, Places()), channel<1>(a, b, c, Places()), channel<2>(a, b, c, Places())};
}
inline void store_pixels(float* p, int64_t n, const Rgb& scaled) {
  using Places = std::make_index_sequence<16>;
  const FloatVec r = scaled.r, g = scaled.g, b = scaled.b;
  _mm512_mask_storeu_ps(p, first_floats(3 * n), (__m512)interleaved<0>(r, g, b, Places()));
  _mm512_mask_storeu_ps(p + 16, first_floats(3 * n - 16), (__m512)interleaved<1>(r, g, b, Places()));
  _mm512_mask_storeu_ps(p + 32, first_floats(3 * n - 32), (__m512)interleaved<2>(r, g, b, Places()));
}

inline FloatVec load_grey(const float* p, int64_t n) {
  return (FloatVec)_mm512_maskz_loadu_ps(__mmask16(first_bits(n)), p);
}
inline void store_grey(float* p, int64_t n, FloatVec v) {
  _mm512_mask_storeu_ps(p, __mmask16(first_bits(n)), (__m512)v);
}

// A run of pixels to read, with 1 or 3 channels.
template <class S> struct PixelRun {
  const S* from;
  int channels;
  void read(const S* samples, int of, int64_t) {
    from = samples;
    channels = of;
  }
  Rgb rgb(int64_t x, int64_t n) const { return load_pixels(from + 3 * x, n); }
  FloatVec grey(int64_t x, int64_t n) const { return load_grey(from + x, n); }
  Rgb pixels(int64_t x, int64_t n) const { return channels == 3 ? rgb(x, n) : equal(grey(x, n)); }
};
// A run of pixels to write.
template <class S> struct PixelSink {
  S* to;
  void begin(S* samples) { to = samples; }
  void put(int64_t x, int64_t n, const Rgb& scaled) { store_pixels(to + 3 * x, n, scaled); }
  void put_grey(int64_t x, int64_t n, FloatVec scaled) { store_grey(to + x, n, scaled); }
  void end(int64_t) {}
  void end_grey(int64_t) {}
};

#else

template <class S> inline FloatVec widened(const S* p) {
  if constexpr (std::is_same_v<S, float>) return load(p);
  FloatVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = float(p[i]);
  return v;
}

template <class S> struct PixelRun {
  alignas(64) S planes[3][kColumns + kLanes] = {};
  int channels;
  void read(const S* samples, int of, int64_t n) {
    channels = of;
    if (channels == 3)
      split(samples, n, planes[0], planes[1], planes[2]);
    else
      std::memcpy(planes[0], samples, size_t(n) * sizeof(S));
  }
  Rgb rgb(int64_t x, int64_t) const { return {widened(planes[0] + x), widened(planes[1] + x), widened(planes[2] + x)}; }
  FloatVec grey(int64_t x, int64_t) const { return widened(planes[0] + x); }
  Rgb pixels(int64_t x, int64_t n) const { return channels == 3 ? rgb(x, n) : equal(grey(x, n)); }
};
template <class S> struct PixelSink {
  alignas(64) S planes[3][kColumns + kLanes];
  S* to;
  void begin(S* samples) { to = samples; }
  void put(int64_t x, int64_t n, const Rgb& scaled) {
    put_plane(planes[0] + x, scaled.r);
    put_plane(planes[1] + x, scaled.g);
    put_plane(planes[2] + x, scaled.b);
  }
  void put_grey(int64_t x, int64_t, FloatVec scaled) { put_plane(planes[0] + x, scaled); }
  void end(int64_t n) { join(to, n, planes[0], planes[1], planes[2]); }
  void end_grey(int64_t n) { std::memcpy(to, planes[0], size_t(n) * sizeof(S)); }

 private:
  static void put_plane(S* plane, FloatVec scaled) {
    if constexpr (std::is_same_v<S, float>) {
      store(plane, scaled);
      return;
    }
    for (int i = 0; i < kLanes; ++i) plane[i] = S(int32_t(scaled[i]));
  }
};

#endif

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
