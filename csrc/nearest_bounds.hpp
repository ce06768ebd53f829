// How far the score that the tiles compute may be from the exact one.
//
// With a the latent and b the code, both less a common centre, the exact score is T = a.b - |b|^2/2. Rounding moves the
// computed one by at most e = slope (|a||b| + |b|^2/2), so what the tiles compute is not T but the upper bound
//     U = a.b - |b|^2/2 + e  >=  T  >=  U - 2e :
// the |b|^2/2 part of e is in a code's start, and |a||b| is one more multiply-add (slack times norm).
// A coordinate held as two bfloat16 lacks up to 2^-16 of itself, and so does a product of what they hold that leaves out low low:
// 3 * 2^-16 |a||b| in all.
// For cosine both sides are scaled to unit length and there is no |b|^2/2.
#pragma once

#include <cmath>
#include <limits>

#include "nearest.hpp"
#include "nearest_tile.hpp"

namespace vqkit {

template <class T>
struct Bounds {
  Bounds(const NearestProblem<T>& p, Held held) : cosine(p.cosine) {
    const double unit = std::numeric_limits<T>::epsilon() / 2;
    const double share = sizeof(T) == 8 ? 2.25 : 1.125;
    // a product of two bfloat16 is one of 32 that are added before the sum is added to those of the steps before
    const double roundings = held == Held::split ? 40.0 + 3.0 * double(p.dim / 32 + 1) : double(p.dim + 8);
    slope = p.exact ? share * roundings * unit : 0.0;
    if (held == Held::split) slope += 3.1 / 65536.0;
    tiny = p.exact ? 16.0 * double(p.dim + 1) * double(std::numeric_limits<T>::min()) : 0.0;
    subnormal = held == Held::whole ? 0.0 : 2.0 * std::sqrt(double(p.dim)) * double(std::numeric_limits<T>::min()) / slope;
  }

  T slack(double length) const { return T(slope * length); }
  T start(double square) const { return cosine ? T(tiny) : T(tiny - (1.0 - slope) * 0.5 * square); }

  double twice_error(T slack, T norm) const {
    const double start = cosine ? 0.0 : 0.5 * slope * double(norm) * double(norm);
    return 2.0 * ((double(slack) * double(norm) + start) * 1.001 + tiny);
  }

  // A limit below `lower` in T's precision, too.
  T below(double lower) const { return T(lower - std::abs(lower) * std::numeric_limits<T>::epsilon() - tiny); }

  bool cosine;
  double slope;
  // what underflow may take from a score
  double tiny;
  // What bfloat16 may lack of a vector, since products of it take subnormal numbers for zero, as a length that makes up for it in
  // slack times norm.
  double subnormal;
  // lengths beyond which squares may leave T's range
  static constexpr double longest = sizeof(T) == 8 ? 1e150 : 1e18;
};

}  // namespace vqkit
