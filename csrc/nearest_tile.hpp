// The inner loops of the nearest-code search, compiled once for each instruction set (nearest_tile.cpp, nearest_tile_amx.cpp).
#pragma once

#include <cstdint>

namespace vqkit {

// What is told of a row of a tile and a panel where some score is above the row's limit: the panel's scores, bit j set where
// score j is, and the code in the panel's first column. Returns the row's limit from then on.
template <class T>
struct Visitor {
  void* context;
  T (*visit)(void* context, int row, const T* scores, std::uint32_t bits, std::int32_t first);
};

// How the coordinates of a tile are held: as they are; as bfloat16, which all of them are, moved to no centre and not scaled; as a
// bfloat16 and another of what that leaves.
enum class Held { whole, bfloat16, split };

// Codes lie in panels of `panel` columns: a row of starts, a row of norms, then their coordinates.
// Rows (latents) lie in tiles of r <= `rows` rows: r slacks, r limits, then their coordinates.
// Starts, norms and slacks make a score an upper bound of the exact one; see nearest_bounds.hpp.
template <class T>
struct Tile {
  int rows;
  int panel;
  Held held;

  // Of how many T the place is that `dim` coordinates take.
  std::int64_t (*places)(std::int64_t dim);

  // Rows of the smallest tile that is compiled and holds r rows, 1 <= r <= rows.
  int (*rows_for)(int r);

  // score = start_j + slack_i norm_j + x_i . c_j of r = rows_for(r) rows and every code of the panels, of which the first is
  // number `first`. Those above a row's limit are visited, panels in ascending order; limits in the tile are kept up to date.
  // While a row's limit is -inf, those that may be among a panel's `ranks` largest come first, the others after them.
  void (*score)(int r, T* tile, const T* panels, std::int64_t panel_count, std::int64_t dim, std::int32_t first, int ranks,
                const Visitor<T>& visitor);

  // Copies r rows into the coordinates of a tile of r rows, and `panel` codes into those of a panel: times their factors, or less
  // the centre where factors are null.
  void (*pack_rows)(int r, const T* const* rows, const T* centre, const double* factors, std::int64_t dim, T* places);
  void (*pack_codes)(const T* const* codes, const T* centre, const double* factors, std::int64_t dim, T* places);

  // The same bits on every instruction set: eight partial sums in double, added in a fixed order.
  double (*squared_distance)(const T* a, const T* b, std::int64_t dim);
  double (*dot)(const T* a, const T* b, std::int64_t dim);
};

template <class T>
const Tile<T>& tile_portable();
template <class T>
const Tile<T>& tile_avx2();
template <class T>
const Tile<T>& tile_avx512();
// of bfloat16
const Tile<float>& tile_avx512bf16();
const Tile<float>& tile_amx();
const Tile<float>& tile_amx_bfloat16();

}  // namespace vqkit
