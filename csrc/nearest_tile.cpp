#include "nearest_tile.hpp"

#include "nearest_double.hpp"
#include "nearest_visit.hpp"
#include "vector.hpp"

namespace vqkit {
namespace {

#ifdef __AVX512BF16__
constexpr bool pairs = true;
#else
constexpr bool pairs = false;
#endif

// sum + latent * code, of pairs of bfloat16 where the tile is one of pairs
template <class T>
inline __attribute__((always_inline)) auto multiply_add(typename Vector<T>::type latent, typename Vector<T>::type code,
                                                        typename Vector<T>::type sum) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, (__m512bh)latent, (__m512bh)code);
#else
  return Vector<T>::fma(latent, code, sum);
#endif
}

// A tile holds, for every four places, four of the first row, four of the second and so on; a panel a row of codes for every place.
// Fills `scores`, ROWS rows of a panel's width, and returns true if one is above its row's limit.
template <class T, int ROWS>
inline __attribute__((always_inline)) bool score_tile(const T* tile, const T* panel, std::int64_t places, T* scores) {
  using V = Vector<T>;
  typename V::type sums[ROWS][2];
  const auto start0 = V::load(panel), start1 = V::load(panel + V::lanes);
  panel += panel_width<T>;
  const auto norm0 = V::load(panel), norm1 = V::load(panel + V::lanes);
  panel += panel_width<T>;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const auto slack = V::broadcast(tile[r]);
    sums[r][0] = V::fma(slack, norm0, start0);
    sums[r][1] = V::fma(slack, norm1, start1);
  }
  const T* limits = tile + ROWS;
  tile += 2 * ROWS;
  const auto step = [&](int i) __attribute__((always_inline)) {
    const auto code0 = V::load(panel), code1 = V::load(panel + V::lanes);
    panel += panel_width<T>;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto latent = V::broadcast(tile[4 * r + i]);
      sums[r][0] = multiply_add<T>(latent, code0, sums[r][0]);
      sums[r][1] = multiply_add<T>(latent, code1, sums[r][1]);
    }
  };
  std::int64_t d = 0;
  for (; d + 4 <= places; d += 4) {
    step(0);
    step(1);
    step(2);
    step(3);
    tile += 4 * ROWS;
  }
  for (int i = 0; d < places; ++d, ++i) step(i);
  // late in a scan most tiles hold nothing new: one well predicted branch is all that they cost
  auto even = V::set(), odd = V::set();
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    auto& quiet = r % 2 ? odd : even;
    quiet = V::and_at_most(quiet, V::max(sums[r][0], sums[r][1]), V::broadcast(limits[r]));
  }
  if (__builtin_expect(V::all(even) && V::all(odd), 1)) return false;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    V::store(scores + r * panel_width<T>, sums[r][0]);
    V::store(scores + r * panel_width<T> + V::lanes, sums[r][1]);
  }
  return true;
}

template <class T>
__attribute__((noinline)) void visit_rows(int rows, const T* scores, T* limits, std::int32_t first, int ranks, const Visitor<T>& visitor) {
  for (int r = 0; r < rows; ++r) visit_row(r, scores + r * panel_width<T>, limits[r], first, ranks, visitor);
}

template <class T, int ROWS>
void score_panels(T* tile, const T* panels, std::int64_t panel_count, std::int64_t places, std::int32_t first, int ranks,
                  const Visitor<T>& visitor) {
  alignas(64) T scores[ROWS * panel_width<T>];
  for (std::int64_t p = 0; p < panel_count; ++p, panels += (places + 2) * panel_width<T>, first += panel_width<T>)
    if (score_tile<T, ROWS>(tile, panels, places, scores)) visit_rows(ROWS, scores, tile + ROWS, first, ranks, visitor);
}

int rows_for(int r) {
  if (r <= 2) return r;
  if (r <= 4) return 4;
  return tile_rows >= 8 && r <= 8 ? 8 : tile_rows;
}

std::int64_t places(std::int64_t dim) { return pairs ? (dim + 1) / 2 : dim; }

template <class T>
void score(int r, T* tile, const T* panels, std::int64_t panel_count, std::int64_t dim, std::int32_t first, int ranks,
           const Visitor<T>& visitor) {
  constexpr int middle = tile_rows >= 8 ? 8 : tile_rows;
  const auto by = r == 1 ? score_panels<T, 1> : r == 2 ? score_panels<T, 2> : r == 4 ? score_panels<T, 4>
                : r == middle ? score_panels<T, middle> : score_panels<T, tile_rows>;
  by(tile, panels, panel_count, places(dim), first, ranks, visitor);
}

template <class T>
struct Quad {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
  typedef double Wide __attribute__((vector_size(32)));

  // coordinates that four places hold
  static constexpr int size = pairs ? 8 : 4;

  // four places of a row: coordinates moved to the centre or scaled, or pairs of them as they are
  static inline __attribute__((always_inline)) void read(const T* row, const T* centre, const double* factor, type& to) {
    if constexpr (pairs) {
      for (int i = 0; i < 4; ++i) to[i] = pair(row[2 * i], row[2 * i + 1]);
      return;
    }
    std::memcpy(&to, row, sizeof to);
    if (factor != nullptr) {
      to = __builtin_convertvector(__builtin_convertvector(to, Wide) * *factor, type);
    } else {
      type middle;
      std::memcpy(&middle, centre, sizeof middle);
      to -= middle;
    }
  }
  // the place of coordinate d and, of a pair, the next
  static T read_one(const T* row, const T* centre, const double* factor, std::int64_t d, std::int64_t dim) {
    if constexpr (pairs) return pair(row[d], d + 1 < dim ? row[d + 1] : T(0));
    return factor != nullptr ? T(double(row[d]) * *factor) : row[d] - centre[d];
  }
  // the high halves of two floats are their bfloat16
  static T pair(T first, T second) {
    std::uint32_t low, high;
    std::memcpy(&low, &first, sizeof low);
    std::memcpy(&high, &second, sizeof high);
    low = low >> 16 | (high & 0xffff0000u);
    std::memcpy(&first, &low, sizeof low);
    return first;
  }
};

template <class T>
void pack_rows(int r, const T* const* rows, const T* centre, const double* factors, std::int64_t dim, T* places) {
  for (int i = 0; i < r; ++i) {
    const T* row = rows[i];
    const double* factor = factors == nullptr ? nullptr : factors + i;
    T* to = places + 4 * i;
    std::int64_t d = 0;
    for (; d + Quad<T>::size <= dim; d += Quad<T>::size, to += 4 * r) {
      typename Quad<T>::type four;
      Quad<T>::read(row + d, centre + d, factor, four);
      std::memcpy(to, &four, sizeof four);
    }
    for (; d < dim; d += Quad<T>::size / 4) *to++ = Quad<T>::read_one(row, centre, factor, d, dim);
  }
}

// a quad of coordinates of each of four codes -> the four codes of each coordinate
template <class V>
inline __attribute__((always_inline)) void transpose(const V& a, const V& b, const V& c, const V& e, V (&columns)[4]) {
#if defined(__clang__) || __GNUC__ >= 12
  const auto ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const auto ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
  columns[0] = __builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5);
  columns[1] = __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7);
  columns[2] = __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5);
  columns[3] = __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7);
#else
  // GCC 11 has no __builtin_shufflevector
  for (int i = 0; i < 4; ++i) columns[i] = V{a[i], b[i], c[i], e[i]};
#endif
}

template <class T>
void pack_codes(const T* const* codes, const T* centre, const double* factors, std::int64_t dim, T* places) {
  constexpr int width = panel_width<T>, size = Quad<T>::size, step = size / 4;
  const auto factor = [factors](int j) { return factors == nullptr ? nullptr : factors + j; };
  const std::int64_t whole = dim / size * size;
  // a few coordinates of every code at a time, so that what is written stays in the first cache
  for (std::int64_t block = 0; block < whole; block += 4 * size) {
    const std::int64_t end = block + 4 * size <= whole ? block + 4 * size : whole;
    for (int j = 0; j < width; j += 4) {
      for (std::int64_t d = block; d < end; d += size) {
        typename Quad<T>::type a, b, c, e;
        Quad<T>::read(codes[j] + d, centre + d, factor(j), a);
        Quad<T>::read(codes[j + 1] + d, centre + d, factor(j + 1), b);
        Quad<T>::read(codes[j + 2] + d, centre + d, factor(j + 2), c);
        Quad<T>::read(codes[j + 3] + d, centre + d, factor(j + 3), e);
        typename Quad<T>::type columns[4];
        transpose(a, b, c, e, columns);
        for (int i = 0; i < 4; ++i) std::memcpy(places + (d / step + i) * width + j, &columns[i], sizeof columns[i]);
      }
    }
  }
  for (std::int64_t d = whole; d < dim; d += step)
    for (int j = 0; j < width; ++j) places[d / step * width + j] = Quad<T>::read_one(codes[j], centre, factor(j), d, dim);
}

template <class T>
constexpr Tile<T> tile = {
    tile_rows, panel_width<T>, pairs ? Held::bfloat16 : Held::whole, places, rows_for, score<T>, pack_rows<T>, pack_codes<T>,
    squared_distance<T>, dot<T>};

}  // namespace

#define VQKIT_JOIN(a, b) a##b
#define VQKIT_NAME(isa) VQKIT_JOIN(tile_, isa)

#ifdef __AVX512BF16__
const Tile<float>& VQKIT_NAME(VQKIT_TILE)() { return tile<float>; }
#else
template <class T>
const Tile<T>& VQKIT_NAME(VQKIT_TILE)() {
  return tile<T>;
}

template const Tile<float>& VQKIT_NAME(VQKIT_TILE)<float>();
template const Tile<double>& VQKIT_NAME(VQKIT_TILE)<double>();
#endif

}  // namespace vqkit
