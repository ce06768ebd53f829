// The inner loops of the nearest-code search, compiled once for each instruction set (nearest_tile.cpp).
#pragma once

#include <cstdint>

namespace vqkit {

constexpr int max_part = 256;

// Codes lie in panels of `panel` columns: a row of starts, a row of norms, then `dim` rows of coordinates.
// Rows (latents) lie in tiles of r <= `rows` rows: r slacks, then for every four coordinates r times those four.
// Starts, norms and slacks make a score an upper bound of the exact one; see nearest.cpp.
template <class T>
struct Tile {
  int rows;
  int panel;

  // Rows of the smallest tile that is compiled and holds r rows, 1 <= r <= rows.
  int (*rows_for)(int r);

  // scores[i][j] = start_j + slack_i norm_j + x_i . c_j for r = rows_for(r) rows and `panels` panels.
  void (*score)(int r, const T* tile, const T* panels, std::int64_t panel_count, std::int64_t dim, T* scores, std::int64_t stride);

  // Merges `count` <= max_part scores (a multiple of the panel) of one row into its `keep` best, largest first, ties to the
  // lowest index. Codes come in ascending order from call to call.
  void (*keep_best)(const T* scores, std::int64_t count, std::int32_t first, T* best, std::int32_t* index, int keep);

  // Positions of the scores that are at least `least`, ascending; returns how many.
  std::int64_t (*at_least)(const T* scores, std::int64_t count, T least, std::int32_t* positions);

  // Copies r rows into a tile of r rows with their slacks, and `panel` codes into the coordinates of a panel: times their
  // factors, or less the centre where factors are null.
  void (*pack_rows)(int r, const T* const* rows, const T* centre, const double* factors, const T* slacks, std::int64_t dim, T* tile);
  void (*pack_codes)(const T* const* codes, const T* centre, const double* factors, std::int64_t dim, T* panel);

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

}  // namespace vqkit
