// The tiles of processors with a matrix unit for bfloat16 (Intel's AMX): 32 latents against 32 codes in four of its registers.
//
// A float is the sum of two bfloat16, high and low, to within 2^-16 of it, and a product of floats that of three products (the bound
// is in nearest_bounds.hpp): high high + high low + low high, one step of the unit each for 32 coordinates. Up to 21 coordinates leave
// so much of a step empty that the products lie side by side: (high, low, high) of a latent against (high, high, low) of a code.
// Values that are bfloat16 already take one product.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "nearest_double.hpp"
#include "nearest_tile.hpp"
#include "nearest_visit.hpp"

namespace vqkit {
namespace {

// coordinates of one step of the unit
constexpr std::int64_t step = 32;
// rows or codes of one of its registers; floats of one of its rows, in each of which two bfloat16 lie
constexpr int side = 16, line = 16, block = side * line;
constexpr int panel = panel_width<float>;
static_assert(panel == 2 * side, "a panel is two blocks of codes");

enum class Products { one, side_by_side, three };

Products products_of(Held held, std::int64_t dim) {
  if (held == Held::bfloat16) return Products::one;
  return 3 * dim <= 2 * step ? Products::side_by_side : Products::three;
}

std::int64_t steps(std::int64_t coordinates) { return (coordinates + step - 1) / step; }

template <Held held>
std::int64_t places(std::int64_t dim) {
  switch (products_of(held, dim)) {
    case Products::one:
      return line * steps(dim);
    case Products::side_by_side:
      return line * steps(3 * dim);
    default:
      return 2 * line * steps(dim);
  }
}

struct alignas(64) TileConfiguration {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
constexpr TileConfiguration eight_full_tiles = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// The unit's registers in the form that this code wants while it lives; then in that of before, which other libraries may rely on.
class MatrixUnit {
 public:
  MatrixUnit() {
    _tile_storeconfig(&before);
    _tile_loadconfig(&eight_full_tiles);
  }
  ~MatrixUnit() {
    if (before.palette == 0)
      _tile_release();
    else
      _tile_loadconfig(&before);
  }

 private:
  TileConfiguration before = {};
};

// registers 0 to 3, sums, += 4 and 5, latents, times 6 and 7, codes
template <int BLOCKS>
inline __attribute__((always_inline)) void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (BLOCKS == 2) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <int BLOCKS>
inline __attribute__((always_inline)) void load_latents(const float* from) {
  _tile_loadd(4, from, 64);
  if constexpr (BLOCKS == 2) _tile_loadd(5, from + block, 64);
}

inline __attribute__((always_inline)) void load_codes(const float* from) {
  _tile_loadd(6, from, 64);
  _tile_loadd(7, from + block, 64);
}

// Into the sums: x.c of BLOCKS * side latents and a panel of codes.
template <int BLOCKS, bool THREE>
inline __attribute__((always_inline)) void multiply_tile(const float* latents, const float* codes, std::int64_t step_count) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (BLOCKS == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t i = 0; i < step_count; ++i) {
    load_latents<BLOCKS>(latents);
    if constexpr (THREE) {
      // high blocks, then low ones
      load_codes(codes + 2 * block);
      multiply<BLOCKS>();
      load_codes(codes);
      multiply<BLOCKS>();
      latents += BLOCKS * block;
      load_latents<BLOCKS>(latents);
      multiply<BLOCKS>();
      codes += 4 * block;
    } else {
      load_codes(codes);
      multiply<BLOCKS>();
      codes += 2 * block;
    }
    latents += BLOCKS * block;
  }
}

template <int BLOCKS>
inline __attribute__((always_inline)) void store_sums(float* to) {
  constexpr int stride = panel * sizeof(float);
  _tile_stored(0, to, stride);
  _tile_stored(1, to + side, stride);
  if constexpr (BLOCKS == 2) {
    _tile_stored(2, to + side * panel, stride);
    _tile_stored(3, to + side * panel + side, stride);
  }
}

// rows that are looked at together when one of them may have a score above its limit
constexpr int group = 8;

// Bit g is set where a row of group g may have one: the longest norm stands for all of the panel here, and what rounding adds to a
// difference is within the margin of the bound.
template <int ROWS>
inline __attribute__((always_inline)) unsigned loud_groups(const float* tile, const float* panel_head, const float* products) {
  const __m512 start0 = _mm512_load_ps(panel_head), start1 = _mm512_load_ps(panel_head + side);
  const float* norms = panel_head + panel;
  const __m512 longest = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(_mm512_load_ps(norms), _mm512_load_ps(norms + side))));
  alignas(64) float thresholds[ROWS];
  for (int r = 0; r < ROWS; r += side)
    _mm512_store_ps(thresholds + r, _mm512_fnmadd_ps(longest, _mm512_load_ps(tile + r), _mm512_load_ps(tile + ROWS + r)));
  constexpr __mmask16 all = 0xffff;
  __mmask16 quiet[ROWS / group];
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r, products += panel) {
    const __m512 larger = _mm512_max_ps(_mm512_add_ps(_mm512_load_ps(products), start0), _mm512_add_ps(_mm512_load_ps(products + side), start1));
    const __mmask16 so_far = r % group == 0 ? all : quiet[r / group];
    quiet[r / group] = _mm512_mask_cmp_ps_mask(so_far, larger, _mm512_set1_ps(thresholds[r]), _CMP_LE_OQ);
  }
  __mmask16 everywhere = all;
  for (__mmask16 here : quiet) everywhere &= here;
  if (__builtin_expect(everywhere == all, 1)) return 0;
  unsigned loud = 0;
  for (int g = 0; g < ROWS / group; ++g) loud |= unsigned(quiet[g] != all) << g;
  return loud;
}

// Puts scores in the place of a group's products and visits them.
template <int ROWS>
__attribute__((noinline)) void visit_group(int first_row, float* tile, const float* panel_head, float* products, std::int32_t first,
                                           int ranks, const Visitor<float>& visitor) {
  products += first_row * panel;
  for (int r = first_row; r < first_row + group; ++r, products += panel) {
    for (int half = 0; half < panel; half += side) {
      const __m512 start = _mm512_load_ps(panel_head + half), norm = _mm512_load_ps(panel_head + panel + half);
      const __m512 score = _mm512_fmadd_ps(_mm512_set1_ps(tile[r]), norm, _mm512_add_ps(_mm512_load_ps(products + half), start));
      _mm512_store_ps(products + half, score);
    }
    visit_row(r, products, tile[ROWS + r], first, ranks, visitor);
  }
}

template <int BLOCKS, bool THREE>
void score_panels(float* tile, const float* panels, std::int64_t panel_count, std::int64_t places, std::int32_t first, int ranks,
                  const Visitor<float>& visitor) {
  constexpr int rows = BLOCKS * side;
  const std::int64_t step_count = places / (THREE ? 2 * line : line), panel_size = (places + 2) * panel;
  alignas(64) float products[2][rows * panel];
  const MatrixUnit unit;
  // a panel's products are looked at while the unit makes those of the next
  for (std::int64_t p = 0; p <= panel_count; ++p, panels += panel_size) {
    if (p < panel_count) multiply_tile<BLOCKS, THREE>(tile + 2 * rows, panels + 2 * panel, step_count);
    if (p > 0) {
      const float* head = panels - panel_size;
      float* made = products[(p - 1) % 2];
      for (unsigned loud = loud_groups<rows>(tile, head, made); loud != 0; loud &= loud - 1)
        visit_group<rows>(group * __builtin_ctz(loud), tile, head, made, first + std::int32_t(p - 1) * panel, ranks, visitor);
    }
    if (p < panel_count) store_sums<BLOCKS>(products[p % 2]);
  }
}

int rows_for(int r) { return r <= side ? side : 2 * side; }

template <Held held>
void score(int r, float* tile, const float* panels, std::int64_t panel_count, std::int64_t dim, std::int32_t first, int ranks,
           const Visitor<float>& visitor) {
  const bool three = products_of(held, dim) == Products::three;
  const auto by = r == side ? (three ? score_panels<1, true> : score_panels<1, false>) : (three ? score_panels<2, true> : score_panels<2, false>);
  by(tile, panels, panel_count, places<held>(dim), first, ranks, visitor);
}

// A latent or a code, to be moved to the centre or scaled.
struct Source {
  const float* values;
  const float* centre;
  const double* factor;
  std::int64_t dim;

  // Coordinates d to d + 15, zero where there are none.
  __m512 sixteen(std::int64_t d) const {
    if (d >= dim) return _mm512_setzero_ps();
    const __mmask16 there = dim - d >= 16 ? 0xffff : __mmask16((1 << (dim - d)) - 1);
    const __m512 read = _mm512_maskz_loadu_ps(there, values + d);
    if (factor == nullptr) return _mm512_sub_ps(read, _mm512_maskz_loadu_ps(there, centre + d));
    const __m512d by = _mm512_set1_pd(*factor);
    const __m256 low = _mm512_castps512_ps256(read), high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(read), 1));
    const __m256 scaled[2] = {_mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtps_pd(low), by)), _mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtps_pd(high), by))};
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(scaled[0])), _mm256_castps_pd(scaled[1]), 1));
  }
};

// 32 bfloat16
struct Line {
  __m512i bits;

  static Line round(__m512 first, __m512 second) { return {(__m512i)_mm512_cvtne2ps_pbh(second, first)}; }
  __m512 half(int which) const {
    const __m256i halves = which == 0 ? _mm512_castsi512_si256(bits) : _mm512_extracti64x4_epi64(bits, 1);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
};

// The high and the low parts of coordinates d to d + 31.
inline void split(const Source& source, std::int64_t d, Line& high, Line& low) {
  const __m512 first = source.sixteen(d), second = source.sixteen(d + 16);
  high = Line::round(first, second);
  low = Line::round(_mm512_sub_ps(first, high.half(0)), _mm512_sub_ps(second, high.half(1)));
}

// How the lines of a latent or a code follow one another: `write(i, line)` is told of each.
template <Held held, bool CODE, class Write>
inline void write_lines(const Source& source, Write write) {
  const std::int64_t dim = source.dim;
  switch (products_of(held, dim)) {
    case Products::one:
      for (std::int64_t i = 0; i < steps(dim); ++i) write(i, Line::round(source.sixteen(i * step), source.sixteen(i * step + 16)));
      return;
    case Products::side_by_side: {
      Line high, low, lines[3];
      split(source, 0, high, low);
      char* to = reinterpret_cast<char*>(lines);
      std::memset(to, 0, sizeof lines);
      const std::size_t bytes = 2 * dim;
      std::memcpy(to, &high, bytes);
      std::memcpy(to + bytes, CODE ? &high : &low, bytes);
      std::memcpy(to + 2 * bytes, CODE ? &low : &high, bytes);
      for (std::int64_t i = 0; i < steps(3 * dim); ++i) write(i, lines[i]);
      return;
    }
    case Products::three:
      for (std::int64_t i = 0; i < steps(dim); ++i) {
        Line high, low;
        split(source, i * step, high, low);
        write(2 * i, high);
        write(2 * i + 1, low);
      }
  }
}

template <Held held>
void pack_rows(int r, const float* const* rows, const float* centre, const double* factors, std::int64_t dim, float* places) {
  for (int i = 0; i < r; ++i) {
    const Source source{rows[i], centre, factors == nullptr ? nullptr : factors + i, dim};
    // blocks lie side by side in a line's place
    write_lines<held, false>(source, [&](std::int64_t at, Line line_of_row) {
      std::memcpy(places + at * r * line + i * line, &line_of_row, sizeof line_of_row);
    });
  }
}

// 16 lines -> pairs of coordinates, 16 of one pair after the other
inline void transpose(const __m512i (&from)[side], float* to) {
  __m512i a[side], b[side];
  for (int i = 0; i < side; i += 2) {
    a[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < side; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // lane l of b[4 i + j] is pair 4 l + j of lines 4 i to 4 i + 3
  for (int j = 0; j < 4; ++j) {
    const __m512i even[2] = {_mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88)};
    const __m512i odd[2] = {_mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd), _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd)};
    _mm512_storeu_si512(to + j * line, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
    _mm512_storeu_si512(to + (4 + j) * line, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
    _mm512_storeu_si512(to + (8 + j) * line, _mm512_shuffle_i32x4(even[0], even[1], 0xdd));
    _mm512_storeu_si512(to + (12 + j) * line, _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd));
  }
}

template <Held held>
void pack_codes(const float* const* codes, const float* centre, const double* factors, std::int64_t dim, float* places_of_panel) {
  // each line where it belongs, then block by block in place
  for (int j = 0; j < panel; ++j) {
    const Source source{codes[j], centre, factors == nullptr ? nullptr : factors + j, dim};
    write_lines<held, true>(source, [&](std::int64_t at, Line line_of_code) {
      std::memcpy(places_of_panel + at * panel * line + j * line, &line_of_code, sizeof line_of_code);
    });
  }
  for (std::int64_t at = 0; at < places<held>(dim) * panel; at += block) {
    __m512i lines[side];
    std::memcpy(lines, places_of_panel + at, sizeof lines);
    transpose(lines, places_of_panel + at);
  }
}

template <Held held>
constexpr Tile<float> tile = {
    2 * side, panel, held, places<held>, rows_for, score<held>, pack_rows<held>, pack_codes<held>, squared_distance<float>, dot<float>};

}  // namespace

const Tile<float>& tile_amx() { return tile<Held::split>; }
const Tile<float>& tile_amx_bfloat16() { return tile<Held::bfloat16>; }

}  // namespace vqkit
