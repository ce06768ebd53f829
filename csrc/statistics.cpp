#include "statistics.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "clones.hpp"

namespace vqkit {
namespace {

typedef double Eight __attribute__((vector_size(64)));

template <class T>
inline __attribute__((always_inline)) Eight widened(const T* from) {
  typedef T Narrow __attribute__((vector_size(8 * sizeof(T))));
  Narrow lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return __builtin_convertvector(lanes, Eight);
}

// 8 * GROUPS columns of the entries' rows, added in registers to what `from` holds, or to zero without.
template <int GROUPS, class T, class Total>
inline __attribute__((always_inline)) void add_columns(const T* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count,
                                                       const double* from, Total* to) {
  Eight sums[GROUPS] = {};
  if (from != nullptr) std::memcpy(sums, from, sizeof sums);
  for (std::int64_t e = 0; e < count; ++e) {
    const T* row = rows + entries[e] * dim;
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; ++g) sums[g] += widened(row + 8 * g);
  }
  typedef Total Narrow __attribute__((vector_size(8 * sizeof(Total))));
#pragma GCC unroll 4
  for (int g = 0; g < GROUPS; ++g) {
    const Narrow rounded = __builtin_convertvector(sums[g], Narrow);
    std::memcpy(to + 8 * g, &rounded, sizeof rounded);
  }
}

template <class T, class Total>
inline __attribute__((always_inline)) void add_each(const T* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count,
                                                    std::int64_t columns, const double* from, Total* to) {
  std::int64_t d = 0;
  for (; d + 32 <= columns; d += 32) add_columns<4>(rows + d, dim, entries, count, from == nullptr ? from : from + d, to + d);
  for (; d + 8 <= columns; d += 8) add_columns<1>(rows + d, dim, entries, count, from == nullptr ? from : from + d, to + d);
  for (; d < columns; ++d) {
    double sum = from == nullptr ? 0.0 : from[d];
    for (std::int64_t e = 0; e < count; ++e) sum += double(rows[entries[e] * dim + d]);
    to[d] = Total(sum);
  }
}

template <class T, class Total>
inline __attribute__((always_inline)) void sum_each(const T* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count,
                                                    std::int64_t following, std::int64_t columns, Total* totals) {
  constexpr std::int64_t line = 64 / sizeof(T), batch = 16;
  double so_far[column_block];
  const double* from = nullptr;
  for (std::int64_t done = 0; done < count || done == 0; done += batch) {
    const std::int64_t* here = entries + done;
    const std::int64_t size = std::min(batch, count - done);
    // rows lie anywhere: those that follow, of whichever code, are fetched while these are added
    for (std::int64_t e = batch; e < std::min(batch + size, count - done + following); ++e)
      for (std::int64_t d = 0; d < columns; d += line) __builtin_prefetch(rows + here[e] * dim + d);
    if (done + batch >= count) return add_each(rows, dim, here, size, columns, from, totals);
    add_each(rows, dim, here, size, columns, from, so_far);
    from = so_far;
  }
}

}  // namespace

VQKIT_CLONES void sum_rows(const float* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
                           std::int64_t columns, float* totals) {
  sum_each(rows, dim, entries, count, following, columns, totals);
}

VQKIT_CLONES void sum_rows(const float* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
                           std::int64_t columns, double* totals) {
  sum_each(rows, dim, entries, count, following, columns, totals);
}

VQKIT_CLONES void sum_rows(const double* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
                           std::int64_t columns, double* totals) {
  sum_each(rows, dim, entries, count, following, columns, totals);
}

EntriesByCode::EntriesByCode(const std::int64_t* indices, std::int64_t rows, std::int64_t width, std::int64_t codebook_size)
    : offsets(codebook_size + 1, 0) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (indices[row * width] == -1) continue;
    for (std::int64_t i = row * width; i < (row + 1) * width; ++i) {
      if (indices[i] < 0 || indices[i] >= codebook_size)
        throw std::out_of_range("indices: expected values in [0, " + std::to_string(codebook_size) + ") or -1 for a masked row, got " +
                                std::to_string(indices[i]) + " in row " + std::to_string(row));
      ++offsets[indices[i] + 1];
    }
  }
  for (std::int64_t code = 0; code < codebook_size; ++code) offsets[code + 1] += offsets[code];
  entries.resize(offsets.back());
  std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (indices[row * width] == -1) continue;
    for (std::int64_t i = row * width; i < (row + 1) * width; ++i) entries[next[indices[i]]++] = i;
  }
}

std::vector<std::int64_t> EntriesByCode::runs(int threads) const {
  const std::int64_t codes = std::int64_t(offsets.size()) - 1;
  const std::int64_t wanted = threads > 1 ? std::int64_t(threads) * 8 : 1;
  // an empty code still costs a visit
  const auto cost = [this](std::int64_t code) { return offsets[code] + code; };
  std::vector<std::int64_t> bounds = {0};
  for (std::int64_t run = 1; run < wanted; ++run) {
    const std::int64_t target = run * cost(codes) / wanted;
    std::int64_t low = bounds.back(), high = codes;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      cost(middle) < target ? low = middle + 1 : high = middle;
    }
    if (low > bounds.back()) bounds.push_back(low);
  }
  if (bounds.back() < codes) bounds.push_back(codes);
  return bounds;
}

std::int64_t EntriesByCode::column_parts(int threads, std::int64_t dim) const {
  std::int64_t most = 0;
  for (std::size_t code = 0; code + 1 < offsets.size(); ++code) most = std::max(most, offsets[code + 1] - offsets[code]);
  const bool crowded = most * threads > offsets.back();
  // below a cache line of floats a part reads as much as the whole
  return crowded ? std::max<std::int64_t>(std::min<std::int64_t>(threads, dim / 16), 1) : 1;
}

template <class T>
void code_statistics(const T* latents, const std::int64_t* indices, std::int64_t rows, std::int64_t dim, std::int64_t codebook_size,
                     int threads, T* sums, std::int64_t* counts) {
  const EntriesByCode groups(indices, rows, 1, codebook_size);
  for (std::int64_t code = 0; code < codebook_size; ++code) counts[code] = groups.offsets[code + 1] - groups.offsets[code];
  for_each_code(groups, dim, threads, [&](std::int64_t code, std::int64_t first, std::int64_t end) {
    for (std::int64_t column = first; column < end; column += column_block)
      groups.sum(code, latents + column, dim, std::min(column_block, end - column), sums + code * dim + column);
  });
}

template void code_statistics<float>(const float*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, int, float*, std::int64_t*);
template void code_statistics<double>(const double*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, int, double*,
                                      std::int64_t*);

}  // namespace vqkit
