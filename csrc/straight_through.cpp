#include "straight_through.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "statistics.hpp"

namespace vqkit {
namespace {

// rows whose errors are added into one partial sum; fixed, so the total does not depend on the threads
constexpr std::int64_t chunk_rows = 128;
constexpr int lanes = 8;

// |e + q|^2 below which latent and code point opposite ways and the rotation between them is not defined
constexpr double opposite = 1e-24;

template <class T>
void check_indices(const Selection<T>& s) {
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const std::int64_t* picks = s.indices + row * s.width;
    if (picks[0] == -1) continue;
    for (std::int64_t t = 0; t < s.width; ++t)
      if (picks[t] < 0 || picks[t] >= s.code_count)
        throw std::out_of_range("indices: expected values in [0, " + std::to_string(s.code_count) + ") or -1 for a masked row, got " +
                                std::to_string(picks[t]) + " in row " + std::to_string(row));
  }
}

template <class T>
std::int64_t unmasked_rows(const Selection<T>& s) {
  std::int64_t rows = 0;
  for (std::int64_t row = 0; row < s.rows; ++row) rows += s.indices[row * s.width] != -1;
  return rows;
}

// The code of a row, or the mean of its codes in `room`.
template <class T>
const T* selected(const Selection<T>& s, std::int64_t row, T* room) {
  const std::int64_t* picks = s.indices + row * s.width;
  if (s.width == 1) return s.codes + picks[0] * s.dim;
  for (std::int64_t d = 0; d < s.dim; ++d) {
    double total = 0.0;
    for (std::int64_t t = 0; t < s.width; ++t) total += double(s.codes[picks[t] * s.dim + d]);
    room[d] = T(total / double(s.width));
  }
  return room;
}

// Sum of term(d) over the row in a fixed number of partial sums, which the compiler can keep in registers.
template <class Term>
double lane_sum(std::int64_t dim, Term term) {
  double sums[lanes] = {};
  std::int64_t d = 0;
  for (; d + lanes <= dim; d += lanes)
    for (int i = 0; i < lanes; ++i) sums[i] += term(d + i);
  for (int i = 0; d < dim; ++d, ++i) sums[i] += term(d);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// R^T g for R = (|q|/|x|) (I - 2 w w^T + 2 q e^T); false where R is not defined.
template <class T>
bool rotate_back(const T* x, const T* q, const T* grad, std::int64_t dim, T* out) {
  const double x_length = std::sqrt(lane_sum(dim, [&](std::int64_t d) { return double(x[d]) * x[d]; }));
  const double q_length = std::sqrt(lane_sum(dim, [&](std::int64_t d) { return double(q[d]) * q[d]; }));
  if (!(x_length > 0.0) || !(q_length > 0.0)) return false;
  const double x_scale = 1.0 / x_length, q_scale = 1.0 / q_length;
  const auto between = [&](std::int64_t d) { return x[d] * x_scale + q[d] * q_scale; };
  const double square = lane_sum(dim, [&](std::int64_t d) { return between(d) * between(d); });
  if (!(square > opposite)) return false;
  const double along_between = lane_sum(dim, [&](std::int64_t d) { return between(d) * grad[d]; });
  const double along_code = lane_sum(dim, [&](std::int64_t d) { return double(q[d]) * grad[d]; }) * q_scale;
  const double ratio = q_length * x_scale, by_between = 2.0 * along_between / square, by_latent = 2.0 * along_code * x_scale;
  for (std::int64_t d = 0; d < dim; ++d) out[d] = T(ratio * (grad[d] - between(d) * by_between + x[d] * by_latent));
  return true;
}

// totals[d] = sum of latents - quantized over the rows of the entries, for rows that average several codes.
template <class T>
void sum_differences(const Selection<T>& s, const std::int64_t* entries, std::int64_t count, std::int64_t column, std::int64_t columns,
                     double* totals) {
  std::fill_n(totals, columns, 0.0);
  for (std::int64_t e = 0; e < count; ++e) {
    const std::int64_t row = entries[e] / s.width;
    const std::int64_t* picks = s.indices + row * s.width;
    const T* x = s.latents + row * s.dim + column;
    for (std::int64_t d = 0; d < columns; ++d) {
      double total = 0.0;
      for (std::int64_t t = 0; t < s.width; ++t) total += double(s.codes[picks[t] * s.dim + column + d]);
      totals[d] += double(x[d]) - double(T(total / double(s.width)));
    }
  }
}

}  // namespace

template <class T>
double straight_through(const Selection<T>& s, T* quantized) {
  check_indices(s);
  const std::int64_t chunks = (s.rows + chunk_rows - 1) / chunk_rows;
  std::vector<double> errors(chunks, 0.0);
#pragma omp parallel for schedule(static) num_threads(s.threads) if (s.threads > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t end = std::min(s.rows, (chunk + 1) * chunk_rows);
    for (std::int64_t row = chunk * chunk_rows; row < end; ++row) {
      T* out = quantized + row * s.dim;
      if (s.indices[row * s.width] == -1) {
        std::fill_n(out, s.dim, T(0));
        continue;
      }
      const T* q = selected(s, row, out);
      const T* x = s.latents + row * s.dim;
      errors[chunk] += lane_sum(s.dim, [&](std::int64_t d) {
        const double difference = double(x[d]) - double(q[d]);
        return difference * difference;
      });
      if (q != out) std::copy_n(q, s.dim, out);
    }
  }
  double total = 0.0;
  for (double error : errors) total += error;
  const std::int64_t elements = unmasked_rows(s) * s.dim;
  return elements == 0 ? 0.0 : total / double(elements);
}

template <class T>
void straight_through_backward(const Selection<T>& s, const T* grad_quantized, const LossGradients& losses, T* grad_latents, T* grad_codes) {
  const EntriesByCode groups(s.indices, s.rows, s.width, s.code_count);
  const std::int64_t elements = unmasked_rows(s) * s.dim;
  const double commitment = elements == 0 ? 0.0 : losses.commitment * 2.0 / double(elements);
  const double codebook = elements == 0 ? 0.0 : losses.codebook * 2.0 / (double(elements) * double(s.width));

#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
  {
    std::vector<T> room(s.dim);
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < s.rows; ++row) {
      T* out = grad_latents + row * s.dim;
      if (s.indices[row * s.width] == -1) {
        std::fill_n(out, s.dim, T(0));
        continue;
      }
      const T* q = selected(s, row, room.data());
      const T* x = s.latents + row * s.dim;
      const T* grad = grad_quantized + row * s.dim;
      if (!losses.rotation || !rotate_back(x, q, grad, s.dim, out)) std::copy_n(grad, s.dim, out);
      if (commitment == 0.0) continue;
      for (std::int64_t d = 0; d < s.dim; ++d) out[d] = T(out[d] + commitment * (double(x[d]) - double(q[d])));
    }
  }

  if (codebook == 0.0) {
    std::fill_n(grad_codes, s.code_count * s.dim, T(0));
    return;
  }
  for_each_code(groups, s.dim, s.threads, [&](std::int64_t code, std::int64_t first, std::int64_t end) {
    const std::int64_t* entries = groups.entries.data() + groups.offsets[code];
    const std::int64_t count = groups.offsets[code + 1] - groups.offsets[code];
    double totals[column_block];
    for (std::int64_t column = first; column < end; column += column_block) {
      const std::int64_t here = std::min(column_block, end - column);
      if (s.width == 1)
        groups.sum(code, s.latents + column, s.dim, here, totals);
      else
        sum_differences(s, entries, count, column, here, totals);
      // alone in its rows a code is their quantized vector: the sum of the latents is all that varies
      const double own = s.width == 1 ? double(count) : 0.0;
      const T* c = s.codes + code * s.dim + column;
      for (std::int64_t d = 0; d < here; ++d) grad_codes[code * s.dim + column + d] = T(codebook * (own * double(c[d]) - totals[d]));
    }
  });
}

template double straight_through<float>(const Selection<float>&, float*);
template double straight_through<double>(const Selection<double>&, double*);
template void straight_through_backward<float>(const Selection<float>&, const float*, const LossGradients&, float*, float*);
template void straight_through_backward<double>(const Selection<double>&, const double*, const LossGradients&, double*, double*);

}  // namespace vqkit
