// Squared distances and dot products in double: the same bits on every instruction set.
// In an unnamed namespace, as vector.hpp: compiled for each of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.hpp"

namespace vqkit {
namespace {

// eight lanes everywhere; the compiler splits them into what registers there are
typedef double Eight __attribute__((vector_size(64)));

template <class T>
inline __attribute__((always_inline)) void widen(const T* from, Eight& to) {
#ifdef __AVX512F__
  // GCC 12 would convert the halves and join them
  if constexpr (sizeof(T) == 4) {
    to = (Eight)_mm512_cvtps_pd(_mm256_loadu_ps(from));
    return;
  }
#endif
  typedef T Narrow __attribute__((vector_size(8 * sizeof(T))));
  Narrow lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  to = __builtin_convertvector(lanes, Eight);
}

template <class T, class Term>
inline __attribute__((always_inline)) double eight_sums(const T* a, const T* b, std::int64_t dim, Term term) {
  Eight sums = {};
  std::int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    Eight left, right;
    widen(a + d, left);
    widen(b + d, right);
    sums += term(left, right);
  }
  for (int i = 0; d < dim; ++d, ++i) sums[i] += term(double(a[d]), double(b[d]));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class T>
double squared_distance(const T* a, const T* b, std::int64_t dim) {
  return eight_sums(a, b, dim, [](auto left, auto right) __attribute__((always_inline)) { return (left - right) * (left - right); });
}

template <class T>
double dot(const T* a, const T* b, std::int64_t dim) {
  return eight_sums(a, b, dim, [](auto left, auto right) __attribute__((always_inline)) { return left * right; });
}

}  // namespace
}  // namespace vqkit
