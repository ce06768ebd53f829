// What is left to double: a row's best codes in order, and codes that are copies of earlier ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace vqkit {

// The best by a score in double, largest first; what comes later in an equal score stays behind.
struct Ranking {
  double* scores;
  std::int32_t* index;
  int ranks;

  void clear() {
    std::fill_n(scores, ranks, -std::numeric_limits<double>::infinity());
    std::fill_n(index, ranks, -1);
  }
  void offer(double score, std::int32_t code) {
    int rank = ranks;
    // an empty place counts as worse than any score
    while (rank > 0 && (index[rank - 1] < 0 || scores[rank - 1] < score)) --rank;
    if (rank == ranks) return;
    for (int r = ranks - 1; r > rank; --r) {
      scores[r] = scores[r - 1];
      index[r] = index[r - 1];
    }
    scores[rank] = score;
    index[rank] = code;
  }
  // the score of a code that is ranked, else NaN
  double score_of(std::int32_t code) const {
    for (int r = 0; r < ranks; ++r)
      if (index[r] == code) return scores[r];
    return std::nan("");
  }
};

// For every code the first one that has the same bits, itself if there is none.
template <class T>
std::vector<std::int32_t> first_equal(const T* codes, std::int64_t count, std::int64_t dim) {
  const auto hash = [dim](const T* code) {
    std::uint64_t value = 0x9e3779b97f4a7c15u;
    for (std::int64_t d = 0; d < dim; ++d) {
      std::uint64_t bits = 0;
      std::memcpy(&bits, code + d, sizeof(T));
      value = (value ^ bits) * 0xff51afd7ed558ccdu;
      value ^= value >> 29;
    }
    return value;
  };
  std::uint64_t slots = 2;
  while (slots < 2 * std::uint64_t(count)) slots *= 2;
  std::vector<std::int32_t> table(slots, -1), first(count);
  for (std::int64_t c = 0; c < count; ++c) {
    const T* code = codes + c * dim;
    std::uint64_t slot = hash(code) & (slots - 1);
    while (table[slot] >= 0 && std::memcmp(codes + table[slot] * dim, code, dim * sizeof(T)) != 0) slot = (slot + 1) & (slots - 1);
    if (table[slot] < 0) table[slot] = std::int32_t(c);
    first[c] = table[slot];
  }
  return first;
}

}  // namespace vqkit
