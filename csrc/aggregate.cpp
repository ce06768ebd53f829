#include "aggregate.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace vqkit {
namespace {

template <class T>
void check(const CompressedRows<T>& graph, std::int64_t feature_rows) {
  bool ascends = graph.offsets[0] == 0 && graph.offsets[graph.nodes] == graph.edges;
  for (std::int64_t i = 0; ascends && i < graph.nodes; ++i) ascends = graph.offsets[i] <= graph.offsets[i + 1];
  if (!ascends) throw std::out_of_range("offsets: expected values that ascend from 0 to the number of edges, " + std::to_string(graph.edges));
  for (std::int64_t e = 0; e < graph.edges; ++e)
    if (graph.neighbours[e] < 0 || graph.neighbours[e] >= feature_rows)
      throw std::out_of_range("neighbours: expected values in [0, " + std::to_string(feature_rows) + "), got " +
                              std::to_string(graph.neighbours[e]) + " at edge " + std::to_string(e));
}

}  // namespace

template <class T>
void aggregate(const CompressedRows<T>& graph, const T* features, std::int64_t feature_rows, std::int64_t width,
               [[maybe_unused]] int threads, T* out) {
  check(graph, feature_rows);
  // what stays in registers and in the first cache while the edges of a row pass by
  constexpr std::int64_t part = 32;
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (threads > 1)
  for (std::int64_t node = 0; node < graph.nodes; ++node) {
    std::int64_t column = 0;
    for (; column + part <= width; column += part) {
      T sums[part] = {};
      for (std::int64_t e = graph.offsets[node]; e < graph.offsets[node + 1]; ++e) {
        const T* row = features + graph.neighbours[e] * width + column;
        const T weight = graph.weights[e];
        for (std::int64_t d = 0; d < part; ++d) sums[d] += weight * row[d];
      }
      std::copy_n(sums, part, out + node * width + column);
    }
    if (column == width) continue;
    std::fill(out + node * width + column, out + (node + 1) * width, T(0));
    for (std::int64_t e = graph.offsets[node]; e < graph.offsets[node + 1]; ++e)
      for (std::int64_t d = column; d < width; ++d) out[node * width + d] += graph.weights[e] * features[graph.neighbours[e] * width + d];
  }
}

template void aggregate<float>(const CompressedRows<float>&, const float*, std::int64_t, std::int64_t, int, float*);
template void aggregate<double>(const CompressedRows<double>&, const double*, std::int64_t, std::int64_t, int, double*);

}  // namespace vqkit
