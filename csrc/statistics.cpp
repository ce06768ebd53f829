#include "statistics.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "clones.hpp"

namespace vqkit {
namespace {

template <class T>
inline __attribute__((always_inline)) void add_each(const T* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count,
                                                    std::int64_t columns, double* __restrict totals) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t e = 0; e < count; ++e) {
    // the rows of a code lie anywhere: the next one is fetched while this one is added
    if (e + 1 < count)
      for (std::int64_t d = 0; d < columns; d += line) __builtin_prefetch(rows + entries[e + 1] * dim + d);
    const T* row = rows + entries[e] * dim;
    for (std::int64_t d = 0; d < columns; ++d) totals[d] += double(row[d]);
  }
}

}  // namespace

VQKIT_CLONES void add_rows(const float* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t columns,
                           double* totals) {
  add_each(rows, dim, entries, count, columns, totals);
}

VQKIT_CLONES void add_rows(const double* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t columns,
                           double* totals) {
  add_each(rows, dim, entries, count, columns, totals);
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
    double totals[column_block];
    for (std::int64_t column = first; column < end; column += column_block) {
      const std::int64_t here = std::min(column_block, end - column);
      std::fill_n(totals, here, 0.0);
      add_rows(latents + column, dim, groups.entries.data() + groups.offsets[code], counts[code], here, totals);
      for (std::int64_t d = 0; d < here; ++d) sums[code * dim + column + d] = T(totals[d]);
    }
  });
}

template void code_statistics<float>(const float*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, int, float*, std::int64_t*);
template void code_statistics<double>(const double*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, int, double*,
                                      std::int64_t*);

}  // namespace vqkit
