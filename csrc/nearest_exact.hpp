// What double decides: candidates by sums of (x - c)^2, or x.c / |c|, and the ranking that is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "nearest_operands.hpp"
#include "ranking.hpp"

namespace vqkit {

constexpr int max_ranks = 8;

template <class T>
class Exact {
 public:
  Exact(const NearestProblem<T>& problem, const Tile<T>& tile) : p(problem), tile(tile) {}

  double score(const T* x, std::int64_t index) const {
    const T* c = p.codes + index * p.dim;
    if (!p.cosine) return -tile.squared_distance(x, c, p.dim);
    const double length = std::sqrt(tile.dot(c, c, p.dim));
    // a code with NaN or inf has score NaN
    return length == 0.0 ? 0.0 : tile.dot(x, c, p.dim) / length;
  }

  bool finite(std::int64_t index) const { return all_finite(p.codes + index * p.dim, p.dim); }

  // From here on a code that is a copy of an earlier one is not scored again.
  void find_copies() {
    if (originals.empty()) originals = first_equal(p.codes, p.code_count, p.dim);
  }

  // Offers a code, unless it is not finite; one equal to an earlier code has its score, so it is ranked behind it or not at all.
  void offer(Ranking ranking, const T* x, std::int32_t index) const {
    if (!originals.empty() && originals[index] != index) {
      const double known = ranking.score_of(originals[index]);
      if (known == known) ranking.offer(known, index);
      return;
    }
    const double found = score(x, index);
    if (std::isfinite(found))
      ranking.offer(found, index);
    else if (finite(index))
      ranking.offer(-std::numeric_limits<double>::infinity(), index);
  }

  void write(std::int64_t row, int rank, std::int64_t index, double distance) const {
    p.indices[row * p.ranks + rank] = index;
    p.distances[row * p.ranks + rank] = T(distance);
  }

  // Ranks left empty, for want of finite codes, go to the others in ascending order at distance infinity.
  void write(std::int64_t row, const Ranking& ranking) const {
    const T* x = p.latents + row * p.dim;
    const double length = p.cosine ? std::sqrt(tile.dot(x, x, p.dim)) : 1.0;
    std::int64_t other = 0;
    for (int r = 0; r < p.ranks; ++r) {
      if (ranking.index[r] >= 0) {
        const double cosine = length > 0.0 ? ranking.scores[r] / length : 0.0;
        write(row, r, ranking.index[r], p.cosine ? 1.0 - cosine : -ranking.scores[r]);
      } else {
        while (std::count(ranking.index, ranking.index + r, other)) ++other;
        write(row, r, other, std::numeric_limits<double>::infinity());
        ranking.index[r] = std::int32_t(other);
      }
    }
  }

 private:
  const NearestProblem<T>& p;
  const Tile<T>& tile;
  // originals[c]: the first code with the bits of c; empty until it pays
  std::vector<std::int32_t> originals;
};

}  // namespace vqkit
