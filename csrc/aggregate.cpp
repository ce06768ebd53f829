#include "aggregate.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "clones.hpp"

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

template <class T>
inline __attribute__((always_inline)) void sum_node(const T* features, std::int64_t width, const std::int64_t* neighbours, const T* weights,
                                                    std::int64_t edges, T* __restrict out) {
  constexpr std::int64_t line = 64 / sizeof(T);
  std::fill_n(out, width, T(0));
  for (std::int64_t e = 0; e < edges; ++e) {
    // neighbours lie anywhere: the next one is fetched while this one is added
    if (e + 1 < edges)
      for (std::int64_t d = 0; d < width; d += line) __builtin_prefetch(features + neighbours[e + 1] * width + d);
    const T* __restrict row = features + neighbours[e] * width;
    const T weight = weights[e];
    for (std::int64_t d = 0; d < width; ++d) out[d] += weight * row[d];
  }
}

// a clone cannot be a template
VQKIT_CLONES void sum_edges(const float* features, std::int64_t width, const std::int64_t* neighbours, const float* weights, std::int64_t edges,
                            float* out) {
  sum_node(features, width, neighbours, weights, edges, out);
}

VQKIT_CLONES void sum_edges(const double* features, std::int64_t width, const std::int64_t* neighbours, const double* weights,
                            std::int64_t edges, double* out) {
  sum_node(features, width, neighbours, weights, edges, out);
}

}  // namespace

template <class T>
void aggregate(const CompressedRows<T>& graph, const T* features, std::int64_t feature_rows, std::int64_t width,
               [[maybe_unused]] int threads, T* out) {
  check(graph, feature_rows);
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (threads > 1)
  for (std::int64_t node = 0; node < graph.nodes; ++node) {
    const std::int64_t first = graph.offsets[node];
    sum_edges(features, width, graph.neighbours + first, graph.weights + first, graph.offsets[node + 1] - first, out + node * width);
  }
}

template void aggregate<float>(const CompressedRows<float>&, const float*, std::int64_t, std::int64_t, int, float*);
template void aggregate<double>(const CompressedRows<double>&, const double*, std::int64_t, std::int64_t, int, double*);

}  // namespace vqkit
