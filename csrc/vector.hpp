// One register of floats or doubles of the instruction set that the including file is compiled for.
// Everything is in an unnamed namespace: the same source is compiled for several instruction sets into one library.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

namespace vqkit {
namespace {

template <class T>
struct Vector;

#if defined(__AVX512F__)

constexpr int tile_rows = 12;

template <>
struct Vector<float> {
  using type = __m512;
  static constexpr int lanes = 16;
  static type load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, type a) { _mm512_storeu_ps(to, a); }
  static type broadcast(float a) { return _mm512_set1_ps(a); }
  static type fma(type a, type b, type c) { return _mm512_fmadd_ps(a, b, c); }
  static type max(type a, type b) { return _mm512_max_ps(a, b); }
  static unsigned at_least(type a, type b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static unsigned above(type a, type b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  using flags = __mmask16;
  static flags set() { return __mmask16(0xffff); }
  static flags and_at_most(flags so_far, type a, type b) { return _mm512_mask_cmp_ps_mask(so_far, a, b, _CMP_LE_OQ); }
  static bool all(flags a) { return a == set(); }
  static type without(type a, type b) {
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), broadcast(-__builtin_inff()));
  }
  static float largest(type a) { return _mm512_reduce_max_ps(a); }
};

template <>
struct Vector<double> {
  using type = __m512d;
  static constexpr int lanes = 8;
  static type load(const double* from) { return _mm512_loadu_pd(from); }
  static void store(double* to, type a) { _mm512_storeu_pd(to, a); }
  static type broadcast(double a) { return _mm512_set1_pd(a); }
  static type fma(type a, type b, type c) { return _mm512_fmadd_pd(a, b, c); }
  static type max(type a, type b) { return _mm512_max_pd(a, b); }
  static unsigned at_least(type a, type b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
  static unsigned above(type a, type b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  using flags = __mmask8;
  static flags set() { return __mmask8(0xff); }
  static flags and_at_most(flags so_far, type a, type b) { return _mm512_mask_cmp_pd_mask(so_far, a, b, _CMP_LE_OQ); }
  static bool all(flags a) { return a == set(); }
  static type without(type a, type b) {
    return _mm512_mask_mov_pd(a, _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), broadcast(-__builtin_inf()));
  }
  static double largest(type a) { return _mm512_reduce_max_pd(a); }
};

#elif defined(__AVX2__)

constexpr int tile_rows = 6;

template <>
struct Vector<float> {
  using type = __m256;
  static constexpr int lanes = 8;
  static type load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, type a) { _mm256_storeu_ps(to, a); }
  static type broadcast(float a) { return _mm256_set1_ps(a); }
  static type fma(type a, type b, type c) { return _mm256_fmadd_ps(a, b, c); }
  static type max(type a, type b) { return _mm256_max_ps(a, b); }
  static unsigned at_least(type a, type b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
  static unsigned above(type a, type b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
  using flags = __m256;
  static flags set() { return _mm256_cmp_ps(_mm256_setzero_ps(), _mm256_setzero_ps(), _CMP_EQ_OQ); }
  static flags and_at_most(flags so_far, type a, type b) { return _mm256_and_ps(so_far, _mm256_cmp_ps(a, b, _CMP_LE_OQ)); }
  static bool all(flags a) { return _mm256_movemask_ps(a) == (1 << lanes) - 1; }
  static type without(type a, type b) { return _mm256_blendv_ps(a, broadcast(-__builtin_inff()), _mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
  static float largest(type a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
};

template <>
struct Vector<double> {
  using type = __m256d;
  static constexpr int lanes = 4;
  static type load(const double* from) { return _mm256_loadu_pd(from); }
  static void store(double* to, type a) { _mm256_storeu_pd(to, a); }
  static type broadcast(double a) { return _mm256_set1_pd(a); }
  static type fma(type a, type b, type c) { return _mm256_fmadd_pd(a, b, c); }
  static type max(type a, type b) { return _mm256_max_pd(a, b); }
  static unsigned at_least(type a, type b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)); }
  static unsigned above(type a, type b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)); }
  using flags = __m256d;
  static flags set() { return _mm256_cmp_pd(_mm256_setzero_pd(), _mm256_setzero_pd(), _CMP_EQ_OQ); }
  static flags and_at_most(flags so_far, type a, type b) { return _mm256_and_pd(so_far, _mm256_cmp_pd(a, b, _CMP_LE_OQ)); }
  static bool all(flags a) { return _mm256_movemask_pd(a) == (1 << lanes) - 1; }
  static type without(type a, type b) { return _mm256_blendv_pd(a, broadcast(-__builtin_inf()), _mm256_cmp_pd(a, b, _CMP_EQ_OQ)); }
  static double largest(type a) {
    __m128d half = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(half, _mm_unpackhi_pd(half, half)));
  }
};

#else

constexpr int tile_rows = 4;

// 16-byte vectors of the compiler: SSE2 on x86-64, NEON on Arm, plain code elsewhere
template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(16)));
  static constexpr int lanes = 16 / sizeof(T);
  static type load(const T* from) {
    type a;
    std::memcpy(&a, from, sizeof a);
    return a;
  }
  static void store(T* to, type a) { std::memcpy(to, &a, sizeof a); }
  static type broadcast(T a) { return type{} + a; }
  static type fma(type a, type b, type c) {
#if defined(__ARM_NEON) && defined(__aarch64__)
    if constexpr (sizeof(T) == 4) {
      return (type)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    } else {
      return (type)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
    }
#else
    return a * b + c;
#endif
  }
  static type max(type a, type b) { return a > b ? a : b; }
  static unsigned at_least(type a, type b) {
    unsigned bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= unsigned(a[i] >= b[i]) << i;
    return bits;
  }
  static unsigned above(type a, type b) {
    unsigned bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= unsigned(a[i] > b[i]) << i;
    return bits;
  }
  typedef decltype(type{} <= type{}) flags;
  static flags set() { return type{} <= type{}; }
  static flags and_at_most(flags so_far, type a, type b) { return so_far & (a <= b); }
  static bool all(flags a) {
    std::uint64_t halves[2];
    std::memcpy(halves, &a, sizeof halves);
    return (halves[0] & halves[1]) == ~std::uint64_t(0);
  }
  // a with -inf where it equals b
  static type without(type a, type b) { return a == b ? broadcast(-T(__builtin_inf())) : a; }
  static T largest(type a) {
    T most = a[0];
    for (int i = 1; i < lanes; ++i) most = a[i] > most ? a[i] : most;
    return most;
  }
};

#endif

}  // namespace
}  // namespace vqkit
