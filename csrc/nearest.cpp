// Nearest codes by score x.c - |c|^2/2, in the latents' own precision, then proved or decided in double.
//
// With a the latent and b the code, both less a common centre, the exact score is T = a.b - |b|^2/2. Rounding moves the
// computed one by at most e = slope (|a||b| + |b|^2/2), so what the tiles compute is not T but the upper bound
//     U = a.b - |b|^2/2 + e  >=  T  >=  U - 2e :
// the |b|^2/2 part of e is in a code's start, and |a||b| is one more multiply-add (slack times norm). A row keeps its best
// ranks + 2 by U. When each rank's U - 2e exceeds the next rank's U, the order is proved. Otherwise every code whose U
// reaches the worst such lower bound is a candidate, and candidates are compared by sums of (x - c)^2 in double, in ascending
// index, strictly, so that equal codes go to the lowest index. If the candidates are not all among those kept, the row is
// scored once more and they are picked out of the scores.
// For cosine both sides are scaled to unit length, there is no centre, and double compares x.c / |c|.

#include "nearest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "isa.hpp"
#include "nearest_tile.hpp"
#include "ranking.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vqkit {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// rows that are in flight at a time: bounds what is kept for each row
constexpr std::int64_t chunk_rows = 16384;
// packed codes that all threads share, and the part of them that stays in a core's cache while rows pass over it
constexpr std::int64_t block_bytes = 5 << 18;
constexpr std::int64_t part_bytes = 1 << 18;
// a thread's packed rows
constexpr std::int64_t group_bytes = 1 << 17;
constexpr std::int64_t group_rows = 96;
// multiply-adds below which waking another thread costs more than it saves
constexpr double small_work = 1 << 21;
// rows up to which packing the codes costs more than comparing each row with each code in double
constexpr std::int64_t direct_rows = 4;
// rows below which looking for duplicate codes costs more than scoring the duplicates
constexpr std::int64_t few_rows = 16;

template <class T>
const Tile<T>& choose_tile() {
  switch (choose_isa()) {
#ifdef VQKIT_X86
    case Isa::avx512:
      return tile_avx512<T>();
    case Isa::avx2:
      return tile_avx2<T>();
#endif
    default:
      return tile_portable<T>();
  }
}

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

enum class RowKind : std::uint8_t { normal, not_finite, zero, beyond_range };
enum class Verdict : std::uint8_t { settled, rescore, compare_all };

template <class T>
class Search {
 public:
  explicit Search(const NearestProblem<T>& problem)
      : p(problem), tile(choose_tile<T>()), keep(problem.exact ? problem.ranks + 2 : problem.ranks) {
    const double unit = std::numeric_limits<T>::epsilon() / 2;
    const double share = sizeof(T) == 8 ? 2.25 : 1.125;
    slope = p.exact ? share * double(p.dim + 8) * unit : 0.0;
    // what underflow may take from a score
    tiny = p.exact ? 16.0 * double(p.dim + 1) * double(std::numeric_limits<T>::min()) : 0.0;
    longest = sizeof(T) == 8 ? 1e150 : 1e18;
    const double work = double(p.rows + 8) * double(p.code_count) * double(p.dim);
    threads = work < small_work ? 1 : std::max(p.threads, 1);

    const std::int64_t code_bytes = (p.dim + 2) * std::int64_t(sizeof(T));
    panel_size = (p.dim + 2) * tile.panel;
    part = std::max<std::int64_t>(std::min<std::int64_t>(max_part, part_bytes / code_bytes) / tile.panel, 1);
    const std::int64_t parts = std::max<std::int64_t>(block_bytes / (part * tile.panel * code_bytes), 1);
    panel_count = round_up(p.code_count, tile.panel) / tile.panel;
    block = std::min(parts * part, panel_count);
    const std::int64_t fitting = group_bytes / code_bytes / tile.rows;
    group_limit = std::max<std::int64_t>(std::min(fitting, group_rows / tile.rows), 1) * tile.rows;
  }

  void run() {
    if (p.rows == 0) return;
    choose_centre();
    if (p.rows > direct_rows) packed.reset(new T[block * panel_size]);
    norms.resize(p.code_count);
    const std::int64_t most = std::min(p.rows, chunk_rows);
    best.resize(most * keep);
    best_index.resize(most * keep);
    slacks.resize(most);
    kinds.resize(most);
    verdicts.resize(most);
    if (p.cosine) factors.resize(most);
    // one tile row of head room: the last tile of a group is padded up to a tile size
    group_size = (group_limit + tile.rows) * (p.dim + 4 + 1);
    score_stride = part * tile.panel;
    groups.reset(new T[threads * group_size]);
    scores.reset(new T[threads * tile.rows * score_stride]);
    for (first = 0; first < p.rows; first += chunk_rows) {
      count = std::min(chunk_rows, p.rows - first);
      search_chunk();
    }
  }

 private:
  void choose_centre() {
    centre.assign(p.dim, T(0));
    if (p.cosine || p.rows <= direct_rows) return;
    // a sample serves as well as the mean of all: any common centre is right, one near the codes is precise
    const std::int64_t sample = std::min<std::int64_t>(p.code_count, 64);
    std::vector<double> sums(p.dim, 0.0);
    std::int64_t found = 0;
    for (std::int64_t s = 0; s < sample; ++s) {
      // codes that are not finite, as rows left out of a search may be, must not cost the others their centre
      std::int64_t index = s * p.code_count / sample;
      const std::int64_t end = (s + 1) * p.code_count / sample;
      while (index < end && !finite(code(index))) ++index;
      if (index == end) continue;
      ++found;
      for (std::int64_t d = 0; d < p.dim; ++d) sums[d] += double(code(index)[d]);
    }
    if (found == 0) return;
    for (std::int64_t d = 0; d < p.dim; ++d) {
      const double mean = sums[d] / double(found);
      if (std::abs(mean) < longest) centre[d] = T(mean);
    }
  }

  void search_chunk() {
    std::fill_n(best.begin(), count * keep, -std::numeric_limits<T>::infinity());
    std::fill_n(best_index.begin(), count * keep, -1);
    if (p.rows > direct_rows) {
      score_all(nullptr, count, [this](std::int64_t row, T* row_scores, std::int64_t length, std::int32_t first_code) {
        tile.keep_best(row_scores, length, first_code, &best[row * keep], &best_index[row * keep], keep);
      });
    } else {
      for (std::int64_t row = 0; row < count; ++row) {
        measure_row(row);
        verdicts[row] = settle_row(row);
      }
    }
    std::vector<std::int32_t> again, everything;
    for (std::int64_t row = 0; row < count; ++row) {
      if (verdicts[row] == Verdict::rescore) again.push_back(std::int32_t(row));
      if (verdicts[row] == Verdict::compare_all) everything.push_back(std::int32_t(row));
    }
    if (originals.empty() && std::int64_t(again.size() + everything.size()) >= few_rows)
      originals = first_equal(p.codes, p.code_count, p.dim);
    if (!again.empty()) rescore_rows(again);
    if (!everything.empty()) compare_all_codes(everything);
  }

  const T* latent(std::int64_t row) const { return p.latents + (first + row) * p.dim; }
  bool finite(const T* vector) const {
    return std::all_of(vector, vector + p.dim, [](T value) { return std::isfinite(value); });
  }
  const T* code(std::int64_t index) const { return p.codes + index * p.dim; }

  void measure_row(std::int64_t row) {
    const T* x = latent(row);
    const double square = p.cosine ? tile.dot(x, x, p.dim) : tile.squared_distance(x, centre.data(), p.dim);
    double length = std::sqrt(square);
    kinds[row] = RowKind::normal;
    if (!(square < infinity)) {
      kinds[row] = finite(x) ? RowKind::beyond_range : RowKind::not_finite;
    } else if (p.cosine && square == 0.0) {
      kinds[row] = std::all_of(x, x + p.dim, [](T value) { return value == T(0); }) ? RowKind::zero : RowKind::beyond_range;
    } else if (length > longest || (p.cosine && length < 1 / longest)) {
      kinds[row] = RowKind::beyond_range;
    }
    if (p.cosine) {
      factors[row] = kinds[row] == RowKind::normal ? 1.0 / length : 0.0;
      length = 1.0;
    }
    slacks[row] = kinds[row] == RowKind::normal ? T(slope * length) : T(0);
  }

  // A panel of codes, its starts and its norms; unusable codes and the padding start at -inf and are never chosen.
  void pack_panel(std::int64_t number, T* panel) {
    const T* sources[64];
    double scale[64];
    for (int j = 0; j < tile.panel; ++j) {
      const std::int64_t index = number * tile.panel + j;
      // the centre less itself is zero, and so is the zero centre of cosine times anything
      sources[j] = centre.data();
      scale[j] = 1.0;
      panel[j] = -std::numeric_limits<T>::infinity();
      panel[tile.panel + j] = T(0);
      if (index >= p.code_count) continue;
      const T* c = code(index);
      const double square = p.cosine ? tile.dot(c, c, p.dim) : tile.squared_distance(c, centre.data(), p.dim);
      if (!(square < infinity) && !finite(c)) continue;
      const double length = std::sqrt(square);
      if (!(length < longest) || (p.cosine && square > 0.0 && length < 1 / longest)) {
#pragma omp atomic write
        codes_beyond_range = 1;
        continue;
      }
      if (p.cosine) {
        if (square > 0.0) {
          sources[j] = c;
          scale[j] = 1.0 / length;
          panel[tile.panel + j] = T(1);
        }
        panel[j] = T(tiny);
      } else {
        sources[j] = c;
        panel[j] = T(tiny - (1.0 - slope) * 0.5 * square);
        panel[tile.panel + j] = T(length);
      }
      norms[index] = panel[tile.panel + j];
    }
    tile.pack_codes(sources, centre.data(), p.cosine ? scale : nullptr, p.dim, panel + 2 * tile.panel);
  }

  // Scores rows ids[0..number) of the chunk against every code; take(row, scores, length, first code) sees the codes of a row
  // in ascending order, always from one thread at a time. Without ids all rows are meant, for the first time: they are
  // measured before and settled after, while they are in the cache.
  template <class Take>
  void score_all(const std::int32_t* ids, std::int64_t number, Take take) {
    const std::int64_t even = round_up((number + 4 * threads - 1) / (4 * threads), tile.rows);
    const std::int64_t group = std::min(group_limit, threads > 1 ? even : group_limit);
    const std::int64_t group_count = (number + group - 1) / group;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      T* rows = &groups[thread_number() * group_size];
      T* sums = &scores[thread_number() * tile.rows * score_stride];
      for (std::int64_t start = 0; start < panel_count; start += block) {
        const std::int64_t panels = std::min(block, panel_count - start);
        if (packed_start != start) {
#pragma omp for schedule(static)
          for (std::int64_t i = 0; i < panels; ++i) pack_panel(start + i, &packed[i * panel_size]);
        }
#pragma omp for schedule(dynamic)
        for (std::int64_t g = 0; g < group_count; ++g)
          score_group(ids, g * group, std::min(group, number - g * group), start, panels, rows, sums, take);
        // a lone block stays packed for the passes that follow
        if (block >= panel_count) {
#pragma omp single
          packed_start = start;
        }
      }
    }
  }

  template <class Take>
  void score_group(const std::int32_t* ids, std::int64_t from, std::int64_t number, std::int64_t start, std::int64_t panels, T* rows,
                   T* sums, Take take) {
    const auto row_at = [ids](std::int64_t i) { return ids == nullptr ? i : std::int64_t(ids[i]); };
    for (std::int64_t row = from; row < from + number && ids == nullptr && start == 0; ++row) measure_row(row);
    const std::int64_t tile_size = tile.rows * (p.dim + 4 + 1);
    for (std::int64_t i = 0, t = 0; i < number; i += tile.rows, ++t)
      pack_tile(row_at, from + i, std::min<std::int64_t>(tile.rows, number - i), rows + t * tile_size);
    for (std::int64_t i = 0; i < panels; i += part) {
      const std::int64_t here = std::min(part, panels - i);
      for (std::int64_t r = 0, t = 0; r < number; r += tile.rows, ++t) {
        const int height = int(std::min<std::int64_t>(tile.rows, number - r));
        tile.score(tile.rows_for(height), rows + t * tile_size, &packed[i * panel_size], here, p.dim, sums, score_stride);
        for (int h = 0; h < height; ++h)
          take(row_at(from + r + h), sums + h * score_stride, here * tile.panel, std::int32_t((start + i) * tile.panel));
      }
    }
    const bool last = start + panels == panel_count;
    for (std::int64_t row = from; row < from + number && ids == nullptr && last; ++row) verdicts[row] = settle_row(row);
  }

  template <class RowAt>
  void pack_tile(RowAt row_at, std::int64_t from, std::int64_t number, T* to) {
    const T* sources[16];
    double scale[16] = {};
    T slack[16] = {};
    std::fill_n(sources, 16, centre.data());
    for (std::int64_t i = 0; i < number; ++i) {
      const std::int64_t row = row_at(from + i);
      // rows that double will decide are left zero: their scores could overflow
      if (kinds[row] == RowKind::normal) sources[i] = latent(row);
      slack[i] = slacks[row];
      if (p.cosine) scale[i] = factors[row];
    }
    tile.pack_rows(tile.rows_for(int(number)), sources, centre.data(), p.cosine ? scale : nullptr, slack, p.dim, to);
  }

  double exact_score(const T* x, std::int64_t index) const {
    const T* c = code(index);
    if (!p.cosine) return -tile.squared_distance(x, c, p.dim);
    const double length = std::sqrt(tile.dot(c, c, p.dim));
    // a code with NaN or inf has score NaN
    return length == 0.0 ? 0.0 : tile.dot(x, c, p.dim) / length;
  }

  // 2e: how far a score may be above the exact one
  double twice_error(std::int64_t row, std::int32_t index) const {
    const double norm = norms[index];
    const double start = p.cosine ? 0.0 : 0.5 * slope * norm * norm;
    return 2.0 * ((double(slacks[row]) * norm + start) * 1.001 + tiny);
  }

  Verdict settle_row(std::int64_t row) {
    double ranked[8];
    std::int32_t index[8];
    Ranking ranking{ranked, index, p.ranks};
    ranking.clear();
    if (kinds[row] == RowKind::not_finite) {
      for (int r = 0; r < p.ranks; ++r) write(row, r, r, std::nan(""));
      return Verdict::settled;
    }
    if (kinds[row] == RowKind::zero) {
      for (std::int64_t c = 0; c < p.code_count && index[p.ranks - 1] < 0; ++c)
        if (finite(code(c))) ranking.offer(0.0, std::int32_t(c));
      write_ranking(row, ranking);
      return Verdict::settled;
    }
    if (kinds[row] == RowKind::beyond_range || codes_beyond_range || p.rows <= direct_rows) return Verdict::compare_all;

    const T* scores_kept = &best[row * keep];
    const std::int32_t* codes_kept = &best_index[row * keep];
    int found = 0;
    while (found < keep && codes_kept[found] >= 0) ++found;
    const int ranks = std::min(found, p.ranks);
    bool proved = true;
    double least = infinity;
    for (int r = 0; r < ranks && p.exact; ++r) {
      const double lower = double(scores_kept[r]) - twice_error(row, codes_kept[r]);
      if (r + 1 < found && !(lower > double(scores_kept[r + 1]))) proved = false;
      least = std::min(least, lower);
    }
    if (proved) {
      for (int r = 0; r < ranks; ++r) {
        ranked[r] = exact_score(latent(row), codes_kept[r]);
        index[r] = codes_kept[r];
      }
      write_ranking(row, ranking);
      return Verdict::settled;
    }
    if (found == keep && double(scores_kept[keep - 1]) >= least) {
      // from here on the first place holds what a candidate must reach
      T floor = T(least);
      if (double(floor) > least) floor = std::nextafter(floor, -std::numeric_limits<T>::infinity());
      best[row * keep] = floor;
      return Verdict::rescore;
    }
    std::int32_t candidates[16];
    std::copy_n(codes_kept, found, candidates);
    std::sort(candidates, candidates + found);
    for (int i = 0; i < found; ++i) ranking.offer(exact_score(latent(row), candidates[i]), candidates[i]);
    write_ranking(row, ranking);
    return Verdict::settled;
  }

  // Offers a code, unless it is not finite; one equal to an earlier code has its score, so it is ranked behind it or not at all.
  void offer(Ranking ranking, const T* x, std::int32_t index) const {
    if (!originals.empty() && originals[index] != index) {
      const double score = ranking.score_of(originals[index]);
      if (score == score) ranking.offer(score, index);
      return;
    }
    const double score = exact_score(x, index);
    if (std::isfinite(score))
      ranking.offer(score, index);
    else if (finite(code(index)))
      ranking.offer(-infinity, index);
  }

  void rescore_rows(const std::vector<std::int32_t>& rows) {
    std::vector<double> ranked(count_of(rows) * p.ranks, -infinity);
    std::vector<std::int32_t> index(count_of(rows) * p.ranks, -1), place(count);
    for (std::size_t i = 0; i < rows.size(); ++i) place[rows[i]] = std::int32_t(i);
    std::vector<std::int32_t> positions(threads * score_stride);
    score_all(rows.data(), count_of(rows), [&](std::int64_t row, T* row_scores, std::int64_t length, std::int32_t first_code) {
      std::int32_t* reached = &positions[thread_number() * score_stride];
      const std::int64_t number = tile.at_least(row_scores, length, best[row * keep], reached);
      const std::int64_t at = std::int64_t(place[row]) * p.ranks;
      for (std::int64_t i = 0; i < number; ++i) offer({&ranked[at], &index[at], p.ranks}, latent(row), first_code + reached[i]);
    });
    for (std::size_t i = 0; i < rows.size(); ++i) write_ranking(rows[i], {&ranked[i * p.ranks], &index[i * p.ranks], p.ranks});
  }

  void compare_all_codes(const std::vector<std::int32_t>& rows) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (std::int64_t i = 0; i < count_of(rows); ++i) {
      double ranked[8];
      std::int32_t index[8];
      Ranking ranking{ranked, index, p.ranks};
      ranking.clear();
      for (std::int64_t c = 0; c < p.code_count; ++c) offer(ranking, latent(rows[i]), std::int32_t(c));
      write_ranking(rows[i], ranking);
    }
  }

  static std::int64_t count_of(const std::vector<std::int32_t>& rows) { return std::int64_t(rows.size()); }

  void write(std::int64_t row, int rank, std::int64_t index, double distance) {
    p.indices[(first + row) * p.ranks + rank] = index;
    p.distances[(first + row) * p.ranks + rank] = T(distance);
  }

  // Ranks left empty, for want of finite codes, go to the others in ascending order at distance infinity.
  void write_ranking(std::int64_t row, const Ranking& ranking) {
    const double length = p.cosine ? std::sqrt(tile.dot(latent(row), latent(row), p.dim)) : 1.0;
    std::int64_t other = 0;
    for (int r = 0; r < p.ranks; ++r) {
      if (ranking.index[r] >= 0) {
        const double cosine = length > 0.0 ? ranking.scores[r] / length : 0.0;
        write(row, r, ranking.index[r], p.cosine ? 1.0 - cosine : -ranking.scores[r]);
      } else {
        while (std::count(ranking.index, ranking.index + r, other)) ++other;
        write(row, r, other, infinity);
        ranking.index[r] = std::int32_t(other);
      }
    }
  }

  const NearestProblem<T>& p;
  const Tile<T>& tile;
  const int keep;
  int threads;
  double slope, tiny, longest;
  std::int64_t panel_size, panel_count, part, block, group_limit, group_size = 0, score_stride = 0;
  std::int64_t first = 0, count = 0, packed_start = -1;
  int codes_beyond_range = 0;
  std::vector<T> centre, norms, best, slacks;
  std::unique_ptr<T[]> packed, groups, scores;
  std::vector<double> factors;
  // originals[c]: the first code with the bits of c; empty until it pays
  std::vector<std::int32_t> best_index, originals;
  std::vector<RowKind> kinds;
  std::vector<Verdict> verdicts;
};

}  // namespace

template <class T>
void nearest_codes(const NearestProblem<T>& problem) {
  Search<T>(problem).run();
}

template void nearest_codes<float>(const NearestProblem<float>&);
template void nearest_codes<double>(const NearestProblem<double>&);

}  // namespace vqkit
