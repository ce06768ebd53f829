// Every row against every code, in the order that the caches like, on all threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "nearest_operands.hpp"
#include "nearest_tile.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vqkit {

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

inline std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

template <class T>
class Scan {
 public:
  Scan(const NearestProblem<T>& problem, const Tile<T>& tile, Operands<T>& operands, int threads)
      : p(problem), tile(tile), operands(operands), threads(threads) {
    const std::int64_t code_bytes = (tile.places(p.dim) + 2) * std::int64_t(sizeof(T));
    const std::int64_t part_codes = tile.rows > low_tile ? 1024 : 256;
    part = std::max<std::int64_t>(std::min(part_codes, part_bytes / code_bytes) / tile.panel, 1);
    const std::int64_t parts = std::max<std::int64_t>(block_bytes / (part * tile.panel * code_bytes), 1);
    panel_count = round_up(p.code_count, tile.panel) / tile.panel;
    block = std::min(parts * part, panel_count);
    const std::int64_t fitting = group_bytes / code_bytes / tile.rows;
    group_limit = std::max<std::int64_t>(std::min(fitting, group_rows / tile.rows), 1) * tile.rows;
    group_size = (group_limit / tile.rows + 1) * operands.tile_size();
  }

  // Rows ids[0..number), all of which are known, or without ids rows 0..number, each first given to measure(row).
  // visit(row, scores, bits, first) is told of scores above the row's limit, codes in ascending order and a row always
  // from one thread at a time, as a Visitor is; settle(row) comes after a row's last code, while the row is in the cache.
  template <class Measure, class Visit, class Settle>
  void run(const std::int32_t* ids, std::int64_t number, Measure measure, Visit visit, Settle settle) {
    if (packed == nullptr) {
      packed = aligned(block * operands.panel_size());
      groups = aligned(threads * group_size);
    }
    const std::int64_t even = round_up((number + 4 * threads - 1) / (4 * threads), tile.rows);
    const std::int64_t group = std::min(group_limit, threads > 1 ? even : group_limit);
    const std::int64_t group_count = (number + group - 1) / group;
    const auto row_at = [ids](std::int64_t i) { return ids == nullptr ? i : std::int64_t(ids[i]); };
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      T* rows = &groups[thread_number() * group_size];
      for (std::int64_t start = 0; start < panel_count; start += block) {
        const std::int64_t panels = std::min(block, panel_count - start);
        if (packed_start != start) {
#pragma omp for schedule(static)
          for (std::int64_t i = 0; i < panels; ++i) operands.pack_panel(start + i, &packed[i * operands.panel_size()]);
        }
#pragma omp for schedule(dynamic)
        for (std::int64_t g = 0; g < group_count; ++g) {
          const std::int64_t from = g * group, here = std::min(group, number - from);
          if (start == 0)
            for (std::int64_t i = from; i < from + here; ++i) measure(row_at(i));
          score_group([&](std::int64_t i) { return row_at(from + i); }, here, start, panels, rows, visit);
          if (start + panels == panel_count)
            for (std::int64_t i = from; i < from + here; ++i) settle(row_at(i));
        }
        // a lone block stays packed for the passes that follow
        if (block >= panel_count) {
#pragma omp single
          packed_start = start;
        }
      }
    }
  }

 private:
  // packed codes that all threads share, and the part of them that stays in a core's cache while rows pass over it
  static constexpr std::int64_t block_bytes = 5 << 18;
  static constexpr std::int64_t part_bytes = 1 << 18;
  // rows of a tile above which codes are read so seldom that they may as well come from the second cache
  static constexpr std::int64_t low_tile = 16;
  // a thread's packed rows
  static constexpr std::int64_t group_bytes = 1 << 17;
  static constexpr std::int64_t group_rows = 96;

  // panels and tiles start at a cache line
  static constexpr std::align_val_t line{64};
  struct Release {
    void operator()(T* numbers) const { ::operator delete[](numbers, line); }
  };
  using Aligned = std::unique_ptr<T[], Release>;
  static Aligned aligned(std::int64_t count) { return Aligned(static_cast<T*>(::operator new[](count * sizeof(T), line))); }

  template <class RowAt, class Visit>
  void score_group(RowAt row_at, std::int64_t number, std::int64_t start, std::int64_t panels, T* rows, Visit& visit) {
    const std::int64_t size = operands.tile_size();
    const auto height = [&](std::int64_t r) { return int(std::min<std::int64_t>(tile.rows, number - r)); };
    for (std::int64_t r = 0, t = 0; r < number; r += tile.rows, ++t)
      operands.pack_tile([&](int i) { return row_at(r + i); }, height(r), rows + t * size);
    for (std::int64_t i = 0; i < panels; i += part) {
      const std::int64_t here = std::min(part, panels - i);
      for (std::int64_t r = 0, t = 0; r < number; r += tile.rows, ++t) {
        auto forward = [&](int row, const T* scores, std::uint32_t bits, std::int32_t first) {
          return visit(row_at(r + row), scores, bits, first);
        };
        using Forward = decltype(forward);
        const Visitor<T> visitor{&forward, [](void* context, int row, const T* scores, std::uint32_t bits, std::int32_t first) {
                                   return (*static_cast<Forward*>(context))(row, scores, bits, first);
                                 }};
        tile.score(tile.rows_for(height(r)), rows + t * size, &packed[i * operands.panel_size()], here, p.dim,
                   std::int32_t((start + i) * tile.panel), p.ranks, visitor);
      }
    }
  }

  const NearestProblem<T>& p;
  const Tile<T>& tile;
  Operands<T>& operands;
  const int threads;
  std::int64_t panel_count, part, block, group_limit, group_size, packed_start = -1;
  Aligned packed, groups;
};

}  // namespace vqkit
