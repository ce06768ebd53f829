// Rows grouped by their code, and what is summed over each group.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace vqkit {

// Columns that are summed at a time: their totals stay in the first cache.
constexpr std::int64_t column_block = 512;

// totals[d] = sum of rows[entries[e] * dim + d] over e < count, added in turn in double and rounded once, for d < columns <=
// column_block; rows may point at a later column. `following` entries lie behind these and will be summed soon.
void sum_rows(const float* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
              std::int64_t columns, float* totals);
void sum_rows(const float* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
              std::int64_t columns, double* totals);
void sum_rows(const double* rows, std::int64_t dim, const std::int64_t* entries, std::int64_t count, std::int64_t following,
              std::int64_t columns, double* totals);

// A stable counting sort: entries[offsets[k]] .. entries[offsets[k + 1]) are the positions in `indices` that hold code k,
// ascending. Position -1 is skipped, and so is a whole row of `width` positions whose first is -1.
// Throws std::out_of_range for another index outside [0, codebook_size).
struct EntriesByCode {
  EntriesByCode(const std::int64_t* indices, std::int64_t rows, std::int64_t width, std::int64_t codebook_size);

  // Bounds of contiguous runs of codes with about equally many entries, for `threads` threads; never depends on more.
  std::vector<std::int64_t> runs(int threads) const;
  // How many parts the columns are cut into so that one crowded code does not leave the other threads idle.
  std::int64_t column_parts(int threads, std::int64_t dim) const;

  // sum_rows of a code's entries.
  template <class T, class Total>
  void sum(std::int64_t code, const T* rows, std::int64_t dim, std::int64_t columns, Total* totals) const {
    const std::int64_t first = offsets[code], end = offsets[code + 1];
    sum_rows(rows, dim, entries.data() + first, end - first, offsets.back() - end, columns, totals);
  }

  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> entries;
};

// visit(code, first column, end column) for every code, in parallel; columns are independent of each other.
template <class Visit>
void for_each_code(const EntriesByCode& groups, std::int64_t dim, int threads, Visit visit) {
  const std::vector<std::int64_t> runs = groups.runs(threads);
  const std::int64_t run_count = std::int64_t(runs.size()) - 1;
  const std::int64_t parts = groups.column_parts(threads, dim);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t task = 0; task < run_count * parts; ++task) {
    const std::int64_t run = task / parts, part = task % parts;
    for (std::int64_t code = runs[run]; code < runs[run + 1]; ++code) visit(code, part * dim / parts, (part + 1) * dim / parts);
  }
}

// sums (codebook_size, dim) of the rows that have each code, added in ascending order in double and rounded once;
// counts (codebook_size,). Index -1 is skipped. The same bits for any number of threads.
template <class T>
void code_statistics(const T* latents, const std::int64_t* indices, std::int64_t rows, std::int64_t dim, std::int64_t codebook_size,
                     int threads, T* sums, std::int64_t* counts);

}  // namespace vqkit
