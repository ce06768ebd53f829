// Exact nearest-code search on the CPU.
#pragma once

#include <cstdint>

namespace vqkit {

template <class T>
struct NearestProblem {
  const T* latents;  // (rows, dim)
  const T* codes;    // (code_count, dim)
  std::int64_t rows;
  std::int64_t code_count;
  std::int64_t dim;
  int ranks;
  bool cosine;
  bool exact;
  bool bfloat16;  // every value is one that bfloat16 holds
  int threads;
  T* distances;           // (rows, ranks)
  std::int64_t* indices;  // (rows, ranks)
};

// The `ranks` nearest codes of each row, nearest first, ties to the lowest index; the same bits for any number of threads.
// With `heads` the problem is the first of so many that lie one after the other in all four arrays.
// Throws std::invalid_argument for a VQKIT_ISA that cannot be served.
template <class T>
void nearest_codes(const NearestProblem<T>& problem, std::int64_t heads);

}  // namespace vqkit
