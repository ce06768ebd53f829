// Nearest codes by score x.c - |c|^2/2, in the latents' own precision, then proved or decided in double.
//
// A score is an upper bound U of the exact one, which is at least U - 2e (nearest_bounds.hpp). Once `ranks` codes are seen, a
// code whose U is not above the worst of their U - 2e cannot be among the nearest: that is the row's limit, and it rejects nearly
// all that follows, a tile at a time (nearest_tile.cpp). Of what passes the best ranks + 2 by U are kept. When each rank's
// U - 2e exceeds the next rank's U, the order is proved. Otherwise all that passes the last limit are candidates, compared by
// sums of (x - c)^2 in double (nearest_exact.hpp), in ascending index, strictly, so that equal codes go to the lowest index.
// If the candidates are not all among those kept, the row is scanned once more for them.
// For cosine both sides are scaled to unit length, there is no centre, and double compares x.c / |c|.

#include "nearest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "nearest_bounds.hpp"
#include "nearest_exact.hpp"
#include "nearest_operands.hpp"
#include "nearest_scan.hpp"
#include "nearest_tile.hpp"
#include "ranking.hpp"

namespace vqkit {
namespace {

// rows that are in flight at a time: bounds what is kept for each row
constexpr std::int64_t chunk_rows = 16384;
// multiply-adds below which waking another thread costs more than it saves
constexpr double small_work = 1 << 21;
// rows up to which packing the codes costs more than comparing each row with each code in double
constexpr std::int64_t direct_rows = 4;
// rows below which looking for duplicate codes costs more than scoring the duplicates
constexpr std::int64_t few_rows = 16;

// The tile for any values and, where there is one, a faster for those that are bfloat16.
template <class T>
struct Tiles {
  const Tile<T>* any;
  const Tile<T>* bfloat16;
};

template <class T>
Tiles<T> choose_tiles() {
  const Isa isa = choose_isa();
#ifdef VQKIT_AMX
  if constexpr (sizeof(T) == 4)
    if (isa == Isa::amx) return {&tile_amx(), &tile_amx_bfloat16()};
#endif
#ifdef VQKIT_BF16
  if constexpr (sizeof(T) == 4)
    if (multiplies_bfloat16()) return {&tile_avx512<T>(), &tile_avx512bf16()};
#endif
#ifdef VQKIT_X86
  if (isa == Isa::avx512 || isa == Isa::amx) return {&tile_avx512<T>(), nullptr};
  if (isa == Isa::avx2) return {&tile_avx2<T>(), nullptr};
#endif
  return {&tile_portable<T>(), nullptr};
}

// What is held as bfloat16 cannot be moved to a centre: it serves where that would hardly make the codes shorter.
template <class T>
bool bfloat16_serves(const NearestProblem<T>& p, const std::vector<T>& centre) {
  if (!p.bfloat16) return false;
  double moved = 0.0, whole = 0.0;
  const std::int64_t step = (p.code_count + 63) / 64;
  for (std::int64_t c = 0; c < p.code_count; c += step)
    for (std::int64_t d = 0; d < p.dim; ++d) {
      const double value = double(p.codes[c * p.dim + d]), less = value - double(centre[d]);
      if (!std::isfinite(value)) continue;
      whole += value * value;
      moved += less * less;
    }
  return whole <= 4.0 * moved;
}

enum class Verdict : std::uint8_t { settled, rescan, compare_all };

template <class T>
class Search {
 public:
  Search(const NearestProblem<T>& problem, const Tile<T>& tile, std::vector<T> centre)
      : p(problem),
        tile(tile),
        keep(problem.exact ? problem.ranks + 2 : problem.ranks),
        threads(problem.threads),
        bounds(problem, tile.held),
        operands(problem, tile, bounds, std::move(centre)),
        exact(problem, tile),
        scan(problem, tile, operands, threads) {}

  void run() {
    for (first = 0; first < p.rows; first += chunk_rows) search_chunk(std::min(chunk_rows, p.rows - first));
  }

 private:
  void search_chunk(std::int64_t count) {
    operands.move_to(first, count);
    best.assign(count * keep, -std::numeric_limits<T>::infinity());
    best_index.assign(count * keep, -1);
    verdicts.resize(count);
    const auto measure = [this](std::int64_t row) { operands.measure_row(row); };
    const auto settle = [this](std::int64_t row) { verdicts[row] = settle_row(row); };
    if (p.rows > direct_rows) {
      const auto visit = [this](std::int64_t row, const T* scores, std::uint32_t bits, std::int32_t first_code) {
        return keep_best(row, scores, bits, first_code);
      };
      scan.run(nullptr, count, measure, visit, settle);
    } else {
      for (std::int64_t row = 0; row < count; ++row) {
        measure(row);
        settle(row);
      }
    }
    std::vector<std::int32_t> again, everything;
    for (std::int64_t row = 0; row < count; ++row) {
      if (verdicts[row] == Verdict::rescan) again.push_back(std::int32_t(row));
      if (verdicts[row] == Verdict::compare_all) everything.push_back(std::int32_t(row));
    }
    if (std::int64_t(again.size() + everything.size()) >= few_rows) exact.find_copies();
    if (!again.empty()) rescan_rows(again);
    if (!everything.empty()) compare_all_codes(everything);
  }

  // Merges scores into the row's best, largest first, ties to the lowest index; returns the limit that follows from them.
  T keep_best(std::int64_t row, const T* scores, std::uint32_t bits, std::int32_t first_code) {
    T* kept = &best[row * keep];
    std::int32_t* index = &best_index[row * keep];
    for (; bits; bits &= bits - 1) {
      const int j = __builtin_ctz(bits);
      const T score = scores[j];
      if (!(score > kept[keep - 1])) continue;
      int rank = keep - 1;
      for (; rank > 0 && kept[rank - 1] < score; --rank) {
        kept[rank] = kept[rank - 1];
        index[rank] = index[rank - 1];
      }
      kept[rank] = score;
      index[rank] = first_code + j;
    }
    T limit = std::max(operands.limits[row], kept[keep - 1]);
    if (p.exact && index[p.ranks - 1] >= 0) limit = std::max(limit, bounds.below(least(row, p.ranks)));
    return operands.limits[row] = limit;
  }

  double lower(std::int64_t row, int rank) const {
    const std::int64_t at = row * keep + rank;
    return double(best[at]) - bounds.twice_error(operands.slacks[row], operands.norms[best_index[at]]);
  }

  // What the exact scores of the row's best `ranks` codes reach at least.
  double least(std::int64_t row, int ranks) const {
    double value = lower(row, 0);
    for (int r = 1; r < ranks; ++r) value = std::min(value, lower(row, r));
    return value;
  }

  Verdict settle_row(std::int64_t row) {
    double ranked[max_ranks];
    std::int32_t index[max_ranks];
    Ranking ranking{ranked, index, p.ranks};
    ranking.clear();
    const RowKind kind = operands.kinds[row];
    if (kind == RowKind::not_finite) {
      for (int r = 0; r < p.ranks; ++r) exact.write(first + row, r, r, std::nan(""));
      return Verdict::settled;
    }
    if (kind == RowKind::zero) {
      for (std::int64_t c = 0; c < p.code_count && index[p.ranks - 1] < 0; ++c)
        if (exact.finite(c)) ranking.offer(0.0, std::int32_t(c));
      exact.write(first + row, ranking);
      return Verdict::settled;
    }
    if (kind == RowKind::beyond_range || operands.codes_beyond_range || p.rows <= direct_rows) return Verdict::compare_all;

    const T* scores_kept = &best[row * keep];
    const std::int32_t* codes_kept = &best_index[row * keep];
    int found = 0;
    while (found < keep && codes_kept[found] >= 0) ++found;
    const int ranks = std::min(found, p.ranks);
    bool proved = true;
    for (int r = 0; r < ranks && r + 1 < found && p.exact; ++r)
      if (!(lower(row, r) > double(scores_kept[r + 1]))) proved = false;
    if (!proved && found == keep && double(scores_kept[keep - 1]) >= least(row, ranks)) {
      operands.limits[row] = bounds.below(least(row, ranks));
      return Verdict::rescan;
    }
    // proved codes are offered in their order, candidates in ascending order
    std::int32_t candidates[16];
    const int count = proved ? ranks : found;
    std::copy_n(codes_kept, count, candidates);
    if (!proved) std::sort(candidates, candidates + count);
    for (int i = 0; i < count; ++i) {
      const double score = exact.score(operands.latent(row), candidates[i]);
      if (!proved) {
        ranking.offer(score, candidates[i]);
      } else {
        ranked[i] = score;
        index[i] = candidates[i];
      }
    }
    exact.write(first + row, ranking);
    return Verdict::settled;
  }

  void rescan_rows(const std::vector<std::int32_t>& rows) {
    const std::int64_t number = std::int64_t(rows.size());
    std::vector<double> ranked(number * p.ranks, -std::numeric_limits<double>::infinity());
    std::vector<std::int32_t> index(number * p.ranks, -1), place(verdicts.size());
    for (std::int64_t i = 0; i < number; ++i) place[rows[i]] = std::int32_t(i);
    const auto ranking = [&](std::int64_t i) { return Ranking{&ranked[i * p.ranks], &index[i * p.ranks], p.ranks}; };
    const auto nothing = [](std::int64_t) {};
    const auto visit = [&](std::int64_t row, const T*, std::uint32_t bits, std::int32_t first_code) {
      for (; bits; bits &= bits - 1) exact.offer(ranking(place[row]), operands.latent(row), first_code + __builtin_ctz(bits));
      return operands.limits[row];
    };
    scan.run(rows.data(), number, nothing, visit, nothing);
    for (std::int64_t i = 0; i < number; ++i) exact.write(first + rows[i], ranking(i));
  }

  void compare_all_codes(const std::vector<std::int32_t>& rows) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (std::int64_t i = 0; i < std::int64_t(rows.size()); ++i) {
      double ranked[max_ranks];
      std::int32_t index[max_ranks];
      Ranking ranking{ranked, index, p.ranks};
      ranking.clear();
      for (std::int64_t c = 0; c < p.code_count; ++c) exact.offer(ranking, operands.latent(rows[i]), std::int32_t(c));
      exact.write(first + rows[i], ranking);
    }
  }

  const NearestProblem<T>& p;
  const Tile<T>& tile;
  const int keep;
  const int threads;
  const Bounds<T> bounds;
  Operands<T> operands;
  Exact<T> exact;
  Scan<T> scan;
  std::int64_t first = 0;
  std::vector<T> best;
  std::vector<std::int32_t> best_index;
  std::vector<Verdict> verdicts;
};

template <class T>
void search(NearestProblem<T> p, const Tiles<T>& tiles) {
  std::vector<T> origin(p.dim, T(0));
  const bool at_origin = p.cosine || p.rows <= direct_rows;
  std::vector<T> centre = at_origin ? origin : sampled_centre(p);
  const bool bfloat16 = !at_origin && tiles.bfloat16 != nullptr && bfloat16_serves(p, centre);
  const Tile<T>& tile = bfloat16 ? *tiles.bfloat16 : *tiles.any;
  // scores of bfloat16 are not of T's precision, and what is proved is fast as well
  if (tile.held != Held::whole) p.exact = true;
  Search<T>(p, tile, bfloat16 ? std::move(origin) : std::move(centre)).run();
}

}  // namespace

template <class T>
void nearest_codes(const NearestProblem<T>& problem, std::int64_t heads) {
  // chosen here: what it throws must not leave a thread
  const Tiles<T> tiles = choose_tiles<T>();
  const double work = double(heads) * double(problem.rows + 8) * double(problem.code_count) * double(problem.dim);
  const int threads = work < small_work ? 1 : std::max(problem.threads, 1);
  // a head for each thread needs no barriers, if it leaves none of them idle for long
  const bool apart = threads > 1 && (heads % threads == 0 || heads >= 8 * threads);
  const auto search_head = [&](std::int64_t head) {
    NearestProblem<T> one = problem;
    one.threads = apart ? 1 : threads;
    one.latents += head * problem.rows * problem.dim;
    one.codes += head * problem.code_count * problem.dim;
    one.distances += head * problem.rows * problem.ranks;
    one.indices += head * problem.rows * problem.ranks;
    search(one, tiles);
  };
  // Two loops and no if clause: inside a region of one thread, too, a further region would start threads of its own, while those of
  // the pool, which just served others, still wait for work and keep the processors.
  if (apart) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t head = 0; head < heads; ++head) search_head(head);
  } else {
    for (std::int64_t head = 0; head < heads; ++head) search_head(head);
  }
}

template void nearest_codes<float>(const NearestProblem<float>&, std::int64_t);
template void nearest_codes<double>(const NearestProblem<double>&, std::int64_t);

}  // namespace vqkit
