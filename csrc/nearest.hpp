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
  int threads;
  T* distances;           // (rows, ranks)
  std::int64_t* indices;  // (rows, ranks)
};

// The `ranks` nearest codes of each row, nearest first, ties to the lowest index; the same bits for any number of threads.
// Throws std::invalid_argument for a VQKIT_ISA that cannot be served.
template <class T>
void nearest_codes(const NearestProblem<T>& problem);

}  // namespace vqkit
