#include "nearest_tile.hpp"

#include "vector.hpp"

namespace vqkit {
namespace {

template <class T>
constexpr int panel_width = 2 * Vector<T>::lanes;

template <class T, int ROWS>
void score_tile(const T* tile, const T* panel, std::int64_t dim, T* scores, std::int64_t stride) {
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
  tile += ROWS;
  const auto step = [&](int i) __attribute__((always_inline)) {
    const auto code0 = V::load(panel), code1 = V::load(panel + V::lanes);
    panel += panel_width<T>;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto latent = V::broadcast(tile[4 * r + i]);
      sums[r][0] = V::fma(latent, code0, sums[r][0]);
      sums[r][1] = V::fma(latent, code1, sums[r][1]);
    }
  };
  std::int64_t d = 0;
  for (; d + 4 <= dim; d += 4) {
    step(0);
    step(1);
    step(2);
    step(3);
    tile += 4 * ROWS;
  }
  for (int i = 0; d < dim; ++d, ++i) step(i);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    V::store(scores + r * stride, sums[r][0]);
    V::store(scores + r * stride + V::lanes, sums[r][1]);
  }
}

template <class T, int ROWS>
void score_panels(const T* tile, const T* panels, std::int64_t panel_count, std::int64_t dim, T* scores, std::int64_t stride) {
  for (std::int64_t p = 0; p < panel_count; ++p)
    score_tile<T, ROWS>(tile, panels + p * (dim + 2) * panel_width<T>, dim, scores + p * panel_width<T>, stride);
}

int rows_for(int r) {
  if (r <= 2) return r;
  if (r <= 4) return 4;
  return tile_rows >= 8 && r <= 8 ? 8 : tile_rows;
}

template <class T>
void score(int r, const T* tile, const T* panels, std::int64_t panel_count, std::int64_t dim, T* scores, std::int64_t stride) {
  constexpr int middle = tile_rows >= 8 ? 8 : tile_rows;
  if (r == 1) return score_panels<T, 1>(tile, panels, panel_count, dim, scores, stride);
  if (r == 2) return score_panels<T, 2>(tile, panels, panel_count, dim, scores, stride);
  if (r == 4) return score_panels<T, 4>(tile, panels, panel_count, dim, scores, stride);
  if (r == middle) return score_panels<T, middle>(tile, panels, panel_count, dim, scores, stride);
  score_panels<T, tile_rows>(tile, panels, panel_count, dim, scores, stride);
}

template <class T>
std::int64_t at_least(const T* scores, std::int64_t count, T least, std::int32_t* positions) {
  using V = Vector<T>;
  const auto limit = V::broadcast(least);
  std::int64_t found = 0;
  for (std::int64_t j = 0; j < count; j += V::lanes)
    for (unsigned bits = V::at_least(V::load(scores + j), limit); bits; bits &= bits - 1)
      positions[found++] = std::int32_t(j + __builtin_ctz(bits));
  return found;
}

// A limit that at least `keep` of the values reach, if there are so many.
template <class T>
T largest_but(typename Vector<T>::type values, int keep) {
  using V = Vector<T>;
  T largest = V::largest(values);
  for (int i = 1; i < keep; ++i) {
    values = V::without(values, V::broadcast(largest));
    largest = V::largest(values);
  }
  return largest;
}

template <class T>
void keep_best(const T* scores, std::int64_t count, std::int32_t first, T* best, std::int32_t* index, int keep) {
  using V = Vector<T>;
  auto most0 = V::load(scores), most1 = V::load(scores + V::lanes);
  for (std::int64_t j = panel_width<T>; j < count; j += panel_width<T>) {
    most0 = V::max(V::load(scores + j), most0);
    most1 = V::max(V::load(scores + j + V::lanes), most1);
  }
  const auto most = V::max(most0, most1);
  const T last = best[keep - 1];
  if (!V::above(most, V::broadcast(last))) return;
  // many scores above the last one kept: only those that reach the best of the lanes can stay
  const bool filling = last == -T(__builtin_inf());
  const T limit = filling ? largest_but<T>(most, keep) : last;
  std::int32_t positions[max_part];
  std::int64_t found = at_least(scores, count, limit, positions);
  if (!filling && found > 4 * keep + 8) {
    const T higher = largest_but<T>(most, keep);
    if (higher > limit) found = at_least(scores, count, higher, positions);
  }
  for (std::int64_t i = 0; i < found; ++i) {
    const T score = scores[positions[i]];
    if (!(score > best[keep - 1])) continue;
    int rank = keep - 1;
    for (; rank > 0 && best[rank - 1] < score; --rank) {
      best[rank] = best[rank - 1];
      index[rank] = index[rank - 1];
    }
    best[rank] = score;
    index[rank] = first + positions[i];
  }
}

template <class T>
struct Quad {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
  typedef double Wide __attribute__((vector_size(32)));

  // four coordinates of a row, moved to the centre or scaled
  static inline __attribute__((always_inline)) void read(const T* row, const T* centre, const double* factor, type& to) {
    std::memcpy(&to, row, sizeof to);
    if (factor != nullptr) {
      to = __builtin_convertvector(__builtin_convertvector(to, Wide) * *factor, type);
    } else {
      type middle;
      std::memcpy(&middle, centre, sizeof middle);
      to -= middle;
    }
  }
  static T read_one(const T* row, const T* centre, const double* factor) {
    return factor != nullptr ? T(double(*row) * *factor) : *row - *centre;
  }
};

template <class T>
void pack_rows(int r, const T* const* rows, const T* centre, const double* factors, const T* slacks, std::int64_t dim, T* tile) {
  for (int i = 0; i < r; ++i) tile[i] = slacks[i];
  tile += r;
  for (int i = 0; i < r; ++i) {
    const T* row = rows[i];
    const double* factor = factors == nullptr ? nullptr : factors + i;
    T* to = tile + 4 * i;
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4, to += 4 * r) {
      typename Quad<T>::type four;
      Quad<T>::read(row + d, centre + d, factor, four);
      std::memcpy(to, &four, sizeof four);
    }
    for (; d < dim; ++d) *to++ = Quad<T>::read_one(row + d, centre + d, factor);
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
void pack_codes(const T* const* codes, const T* centre, const double* factors, std::int64_t dim, T* panel) {
  constexpr int width = panel_width<T>;
  const auto factor = [factors](int j) { return factors == nullptr ? nullptr : factors + j; };
  std::int64_t block = 0;
  // a few coordinates of every code at a time, so that what is written stays in the first cache
  for (; block + 4 <= dim; block += 16) {
    const std::int64_t end = block + 16 <= dim ? block + 16 : dim / 4 * 4;
    for (int j = 0; j < width; j += 4) {
      for (std::int64_t d = block; d < end; d += 4) {
        typename Quad<T>::type a, b, c, e;
        Quad<T>::read(codes[j] + d, centre + d, factor(j), a);
        Quad<T>::read(codes[j + 1] + d, centre + d, factor(j + 1), b);
        Quad<T>::read(codes[j + 2] + d, centre + d, factor(j + 2), c);
        Quad<T>::read(codes[j + 3] + d, centre + d, factor(j + 3), e);
        typename Quad<T>::type columns[4];
        transpose(a, b, c, e, columns);
        for (int i = 0; i < 4; ++i) std::memcpy(panel + (d + i) * width + j, &columns[i], sizeof columns[i]);
      }
    }
  }
  for (std::int64_t d = dim / 4 * 4; d < dim; ++d)
    for (int j = 0; j < width; ++j) panel[d * width + j] = Quad<T>::read_one(codes[j] + d, centre + d, factor(j));
}

// the same eight lanes on every instruction set; the compiler splits them into what registers there are
typedef double Eight __attribute__((vector_size(64)));

template <class T>
inline __attribute__((always_inline)) void widen(const T* from, Eight& to) {
#ifdef __AVX512F__
  // GCC 12 would convert the halves and join them
  if constexpr (sizeof(T) == 4) {
    to = (Eight)_mm512_cvtps_pd(_mm256_loadu_ps(from));
    return;
  }
#endif
  typedef T Narrow __attribute__((vector_size(8 * sizeof(T))));
  Narrow lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  to = __builtin_convertvector(lanes, Eight);
}

template <class T, class Term>
inline __attribute__((always_inline)) double eight_sums(const T* a, const T* b, std::int64_t dim, Term term) {
  Eight sums = {};
  std::int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    Eight left, right;
    widen(a + d, left);
    widen(b + d, right);
    sums += term(left, right);
  }
  for (int i = 0; d < dim; ++d, ++i) sums[i] += term(double(a[d]), double(b[d]));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class T>
double squared_distance(const T* a, const T* b, std::int64_t dim) {
  return eight_sums(a, b, dim, [](auto left, auto right) __attribute__((always_inline)) { return (left - right) * (left - right); });
}

template <class T>
double dot(const T* a, const T* b, std::int64_t dim) {
  return eight_sums(a, b, dim, [](auto left, auto right) __attribute__((always_inline)) { return left * right; });
}

template <class T>
constexpr Tile<T> tile = {tile_rows, panel_width<T>, rows_for, score<T>, keep_best<T>, at_least<T>, pack_rows<T>, pack_codes<T>, squared_distance<T>, dot<T>};

}  // namespace

#define VQKIT_JOIN(a, b) a##b
#define VQKIT_NAME(isa) VQKIT_JOIN(tile_, isa)

template <class T>
const Tile<T>& VQKIT_NAME(VQKIT_TILE)() {
  return tile<T>;
}

template const Tile<float>& VQKIT_NAME(VQKIT_TILE)<float>();
template const Tile<double>& VQKIT_NAME(VQKIT_TILE)<double>();

}  // namespace vqkit
