#include "nearest_operands.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace vqkit {

namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
}

template <class T>
bool all_finite(const T* vector, std::int64_t dim) {
  return std::all_of(vector, vector + dim, [](T value) { return std::isfinite(value); });
}

template <class T>
std::vector<T> sampled_centre(const NearestProblem<T>& p) {
  const std::int64_t sample = std::min<std::int64_t>(p.code_count, 64);
  std::vector<double> sums(p.dim, 0.0);
  std::int64_t found = 0;
  for (std::int64_t s = 0; s < sample; ++s) {
    // codes that are not finite, as rows left out of a search may be, must not cost the others their centre
    std::int64_t index = s * p.code_count / sample;
    const std::int64_t end = (s + 1) * p.code_count / sample;
    while (index < end && !all_finite(p.codes + index * p.dim, p.dim)) ++index;
    if (index == end) continue;
    ++found;
    for (std::int64_t d = 0; d < p.dim; ++d) sums[d] += double(p.codes[index * p.dim + d]);
  }
  std::vector<T> centre(p.dim, T(0));
  for (std::int64_t d = 0; d < p.dim && found > 0; ++d) {
    const double mean = sums[d] / double(found);
    if (std::abs(mean) < Bounds<T>::longest) centre[d] = T(mean);
  }
  return centre;
}

template <class T>
Operands<T>::Operands(const NearestProblem<T>& problem, const Tile<T>& tile, const Bounds<T>& bounds, std::vector<T> centre)
    : norms(problem.code_count), p(problem), tile(tile), bounds(bounds), centre(std::move(centre)) {}

template <class T>
void Operands<T>::move_to(std::int64_t first_row, std::int64_t count) {
  first = first_row;
  kinds.resize(count);
  slacks.resize(count);
  limits.assign(count, -std::numeric_limits<T>::infinity());
  if (p.cosine) factors.resize(count);
}

template <class T>
void Operands<T>::measure_row(std::int64_t row) {
  const T* x = latent(row);
  const double square = p.cosine ? tile.dot(x, x, p.dim) : tile.squared_distance(x, centre.data(), p.dim);
  double length = std::sqrt(square);
  kinds[row] = RowKind::normal;
  if (!(square < infinity)) {
    kinds[row] = all_finite(x, p.dim) ? RowKind::beyond_range : RowKind::not_finite;
  } else if (p.cosine && square == 0.0) {
    kinds[row] = std::all_of(x, x + p.dim, [](T value) { return value == T(0); }) ? RowKind::zero : RowKind::beyond_range;
  } else if (length > bounds.longest || (p.cosine && length < 1 / bounds.longest)) {
    kinds[row] = RowKind::beyond_range;
  }
  if (p.cosine) {
    factors[row] = kinds[row] == RowKind::normal ? 1.0 / length : 0.0;
    length = 1.0;
  }
  slacks[row] = kinds[row] == RowKind::normal ? bounds.slack(length + bounds.subnormal) : T(0);
}

template <class T>
void Operands<T>::pack_panel(std::int64_t number, T* panel) {
  const T* sources[64];
  double scale[64];
  for (int j = 0; j < tile.panel; ++j) {
    const std::int64_t index = number * tile.panel + j;
    // the centre less itself is zero, and so is the zero centre of cosine times anything
    sources[j] = centre.data();
    scale[j] = 1.0;
    panel[j] = -std::numeric_limits<T>::infinity();
    panel[tile.panel + j] = T(0);
    if (index >= p.code_count) continue;
    const T* c = code(index);
    const double square = p.cosine ? tile.dot(c, c, p.dim) : tile.squared_distance(c, centre.data(), p.dim);
    if (!(square < infinity) && !all_finite(c, p.dim)) continue;
    const double length = std::sqrt(square);
    if (!(length < bounds.longest) || (p.cosine && square > 0.0 && length < 1 / bounds.longest)) {
#pragma omp atomic write
      codes_beyond_range = 1;
      continue;
    }
    panel[j] = bounds.start(square);
    if (!p.cosine) {
      sources[j] = c;
      panel[tile.panel + j] = T(length + bounds.subnormal);
    } else if (square > 0.0) {
      sources[j] = c;
      scale[j] = 1.0 / length;
      panel[tile.panel + j] = T(1);
    }
    norms[index] = panel[tile.panel + j];
  }
  tile.pack_codes(sources, centre.data(), p.cosine ? scale : nullptr, p.dim, panel + 2 * tile.panel);
}

template std::vector<float> sampled_centre<float>(const NearestProblem<float>&);
template std::vector<double> sampled_centre<double>(const NearestProblem<double>&);
template class Operands<float>;
template class Operands<double>;
template bool all_finite<float>(const float*, std::int64_t);
template bool all_finite<double>(const double*, std::int64_t);

}  // namespace vqkit
