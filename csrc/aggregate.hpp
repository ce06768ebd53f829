// Weighted sums over the neighbours of each node of a graph in compressed rows.
#pragma once

#include <cstdint>

namespace vqkit {

template <class T>
struct CompressedRows {
  const std::int64_t* offsets;     // (nodes + 1,)
  const std::int64_t* neighbours;  // (edges,)
  const T* weights;                // (edges,)
  std::int64_t nodes;
  std::int64_t edges;
};

// out[i] = sum over e in [offsets[i], offsets[i + 1]) of weights[e] * features[neighbours[e]], edges in ascending order; each row
// has one owner, so the bits do not depend on the threads. features and out are (feature_rows, width) and (nodes, width).
// Throws std::out_of_range for offsets that do not ascend from 0 to edges and for neighbours outside [0, feature_rows).
template <class T>
void aggregate(const CompressedRows<T>& graph, const T* features, std::int64_t feature_rows, std::int64_t width, int threads, T* out);

}  // namespace vqkit
