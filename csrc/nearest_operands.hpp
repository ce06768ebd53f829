// The two sides of the scores in the layout of the tiles: rows and codes less a common centre or scaled, and what goes with each.
#pragma once

#include <cstdint>
#include <vector>

#include "nearest.hpp"
#include "nearest_bounds.hpp"
#include "nearest_tile.hpp"

namespace vqkit {

// Only normal rows are scored; double or a rule decides the others.
enum class RowKind : std::uint8_t { normal, not_finite, zero, beyond_range };

// The mean of a sample of the codes, which serves as well as that of all. Any common centre is right, one near the codes is precise.
template <class T>
std::vector<T> sampled_centre(const NearestProblem<T>& problem);

template <class T>
class Operands {
 public:
  Operands(const NearestProblem<T>& problem, const Tile<T>& tile, const Bounds<T>& bounds, std::vector<T> centre);

  // Rows are numbered from `first` on, at most `count` of them.
  void move_to(std::int64_t first_row, std::int64_t count);
  void measure_row(std::int64_t row);

  std::int64_t panel_size() const { return (tile.places(p.dim) + 2) * tile.panel; }
  std::int64_t tile_size() const { return tile.rows * (tile.places(p.dim) + 4 + 2); }
  // A panel of codes, its starts and its norms; unusable codes and the padding start at -inf and are never chosen.
  void pack_panel(std::int64_t number, T* panel);
  // A tile of the rows row_at(0), .., row_at(number - 1), their slacks and limits.
  template <class RowAt>
  void pack_tile(RowAt row_at, int number, T* to) const;

  const T* latent(std::int64_t row) const { return p.latents + (first + row) * p.dim; }
  const T* code(std::int64_t index) const { return p.codes + index * p.dim; }

  std::vector<RowKind> kinds;
  std::vector<T> slacks;
  // scores that are not above a row's limit are of no interest
  std::vector<T> limits;
  std::vector<T> norms;  // of the codes
  int codes_beyond_range = 0;

 private:
  const NearestProblem<T>& p;
  const Tile<T>& tile;
  const Bounds<T>& bounds;
  std::int64_t first = 0;
  std::vector<T> centre;
  std::vector<double> factors;
};

template <class T>
template <class RowAt>
void Operands<T>::pack_tile(RowAt row_at, int number, T* to) const {
  const T* sources[32];
  double scale[32] = {};
  const int height = tile.rows_for(number);
  for (int i = 0; i < height; ++i) {
    // rows that are not scored, and those that fill the tile, are zero: their scores could overflow
    sources[i] = centre.data();
    to[i] = T(0);
    to[height + i] = std::numeric_limits<T>::infinity();
    if (i >= number) continue;
    const std::int64_t row = row_at(i);
    if (kinds[row] != RowKind::normal) continue;
    sources[i] = latent(row);
    to[i] = slacks[row];
    to[height + i] = limits[row];
    if (p.cosine) scale[i] = factors[row];
  }
  tile.pack_rows(height, sources, centre.data(), p.cosine ? scale : nullptr, p.dim, to + 2 * height);
}

template <class T>
bool all_finite(const T* vector, std::int64_t dim);

}  // namespace vqkit
