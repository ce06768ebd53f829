// From a panel's scores to the visits of those above their rows' limits.
// In an unnamed namespace, as vector.hpp: compiled for each instruction set.
#pragma once

#include <cstdint>

#include "nearest_tile.hpp"
#include "vector.hpp"

namespace vqkit {
namespace {

template <class T>
constexpr int panel_width = 2 * Vector<T>::lanes;

// A limit that at least `count` of the values reach, if there are so many.
template <class T>
T largest_but(typename Vector<T>::type values, int count) {
  using V = Vector<T>;
  T largest = V::largest(values);
  for (int i = 1; i < count; ++i) {
    values = V::without(values, V::broadcast(largest));
    largest = V::largest(values);
  }
  return largest;
}

// Visits what a panel's scores of row r hold above its limit, and keeps the limit up to date.
template <class T>
inline void visit_row(int r, const T* scores, T& known_limit, std::int32_t first, int ranks, const Visitor<T>& visitor) {
  using V = Vector<T>;
  const auto low = V::load(scores), high = V::load(scores + V::lanes);
  auto limit = V::broadcast(known_limit);
  std::uint32_t bits = V::above(low, limit) | V::above(high, limit) << V::lanes;
  if (bits == 0) return;
  if (known_limit == -T(__builtin_inf())) {
    // the first scores: the best of the lanes make a limit that spares most of the others
    limit = V::broadcast(largest_but<T>(V::max(low, high), ranks));
    const std::uint32_t best = bits & (V::at_least(low, limit) | V::at_least(high, limit) << V::lanes);
    known_limit = visitor.visit(visitor.context, r, scores, best, first);
    limit = V::broadcast(known_limit);
    bits &= ~best & (V::above(low, limit) | V::above(high, limit) << V::lanes);
    if (bits == 0) return;
  }
  known_limit = visitor.visit(visitor.context, r, scores, bits, first);
}

}  // namespace
}  // namespace vqkit
