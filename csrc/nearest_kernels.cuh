// The method of nearest.cpp on a GPU: upper bounds of the scores in float32, a proof per row, double for what is left.
//
// measure_codes, measure_rows   lengths in double -> starts and norms of codes, slacks and kinds of rows
// score_rows                    128 x 128 tiles of multiply-adds; each row keeps its best ranks + 2 by upper bound
// settle_rows                   a warp a row: proves the order, or decides it in double among those kept, or queues the row
// compare_rows                  a block a queued row: every code in double
//
// Nothing depends on the order in which blocks run: the queue's order is free, but each row in it is decided alone.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace vqkit {
namespace {

constexpr int block_rows = 128;
constexpr int block_codes = 128;
constexpr int depth = 8;
constexpr int threads = 256;
// a row of a staged tile; a multiple of four floats for vector loads, off a multiple of 32 banks
constexpr int tile_stride = block_rows + 4;
constexpr int score_stride = block_codes + 1;
constexpr int score_bytes = block_rows * score_stride * int(sizeof(float));
constexpr int most_splits = 64;
constexpr int sample_size = 64;
constexpr double longest = 1e18;
constexpr double shortest = 1e-30;

enum RowKind : unsigned char { normal, not_finite, zero, beyond_range };

// What all kernels share; arrays lie in the workspace.
template <class T>
struct Search {
  const T* latents;
  const T* codes;
  long long rows, code_count, dim;
  int ranks, splits;
  bool cosine, exact;
  double slope, tiny;
  float* distances;
  long long* indices;
  float *centre, *starts, *norms, *code_factors;
  float *slacks, *row_factors;
  unsigned char* kinds;
  float* best_scores;
  int* best_codes;
  long long* queue;
  unsigned long long* queued;
  int* codes_beyond_range;
};

__device__ float widen(float value) { return value; }
__device__ float widen(__half value) { return __half2float(value); }
__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// the same bits in every lane: the two sides of a butterfly add the same pair
__device__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Best by score, largest first, equal scores by index; an empty place has index -1.
template <class Score, int KEEP>
struct Best {
  Score score[KEEP];
  int index[KEEP];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < KEEP; ++r) {
      score[r] = -INFINITY;
      index[r] = -1;
    }
  }
  __device__ static bool before(Score a, int i, Score b, int j) { return j < 0 || a > b || (a == b && i < j); }
  __device__ void offer(Score value, int code) {
    if (!before(value, code, score[KEEP - 1], index[KEEP - 1])) return;
    score[KEEP - 1] = value;
    index[KEEP - 1] = code;
#pragma unroll
    for (int r = KEEP - 1; r > 0; --r) {
      if (!before(score[r], index[r], score[r - 1], index[r - 1])) return;
      const Score lower = score[r - 1];
      const int other = index[r - 1];
      score[r - 1] = score[r];
      index[r - 1] = index[r];
      score[r] = lower;
      index[r] = other;
    }
  }
};

template <class T>
__global__ void find_centre(Search<T> s) {
  const long long d = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (d >= s.dim) return;
  const long long sample = s.code_count < sample_size ? s.code_count : sample_size;
  double sum = 0.0;
  for (long long i = 0; i < sample; ++i) sum += double(widen(s.codes[i * s.code_count / sample * s.dim + d]));
  const double mean = sum / double(sample);
  // NaN and what is too large compare false
  s.centre[d] = !s.cosine && fabs(mean) < longest ? float(mean) : 0.0f;
}

template <class T>
__device__ double squared_length(const Search<T>& s, const T* vector) {
  double sum = 0.0;
  for (long long d = threadIdx.x % 32; d < s.dim; d += 32) {
    const double value = double(widen(vector[d])) - double(s.centre[d]);
    sum += value * value;
  }
  return warp_sum(sum);
}

template <class T>
__global__ void measure_codes(Search<T> s) {
  const long long code = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
  if (code >= s.code_count) return;
  const double square = squared_length(s, s.codes + code * s.dim);
  if (threadIdx.x % 32 != 0) return;
  const double length = sqrt(square);
  // codes that are not finite, or that float32 cannot score, start at -inf and are never kept
  float start = -INFINITY, norm = 0.0f, factor = 0.0f;
  if (square < INFINITY) {
    if (!(length < longest) || (s.cosine && length > 0.0 && length < shortest)) {
      *s.codes_beyond_range = 1;
    } else if (s.cosine) {
      start = float(s.tiny);
      if (length > 0.0) {
        norm = 1.0f;
        factor = float(1.0 / length);
      }
    } else {
      start = float(s.tiny - (1.0 - s.slope) * 0.5 * square);
      norm = float(length);
      factor = 1.0f;
    }
  }
  s.starts[code] = start;
  s.norms[code] = norm;
  s.code_factors[code] = factor;
}

template <class T>
__global__ void measure_rows(Search<T> s) {
  const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
  if (row >= s.rows) return;
  const double square = squared_length(s, s.latents + row * s.dim);
  if (threadIdx.x % 32 != 0) return;
  const double length = sqrt(square);
  RowKind kind = normal;
  if (!(square < INFINITY))
    kind = not_finite;
  else if (s.cosine && length == 0.0)
    kind = zero;
  else if (!(length < longest) || (s.cosine && length < shortest))
    kind = beyond_range;
  s.kinds[row] = kind;
  s.slacks[row] = kind == normal ? float(s.slope * (s.cosine ? 1.0 : length)) : 0.0f;
  // a row that double decides is scored as zeros: its scores could overflow
  s.row_factors[row] = kind == normal ? (s.cosine ? float(1.0 / length) : 1.0f) : 0.0f;
}

// Four coordinates of a staged tile for each thread: coordinate threadIdx % 8 of vectors threadIdx / 8 + 32 i.
template <class T>
__device__ void fetch(const T* vectors, const float* factors, const float* centre, long long first, long long count, long long dim,
                      long long d, float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const long long vector = first + threadIdx.x / depth + 32 * i;
    values[i] = 0.0f;
    if (vector >= count || d >= dim) continue;
    // the centre is zero for cosine, the factor one for l2; factor zero switches off what must not enter a product
    const float factor = factors[vector];
    if (factor != 0.0f) values[i] = (widen(vectors[vector * dim + d]) - centre[d]) * factor;
  }
}

__device__ void stage(float* tile, const float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) tile[threadIdx.x % depth * tile_stride + threadIdx.x / depth + 32 * i] = values[i];
}

// Thread (x, y) of 16 x 16 owns rows 4y..4y+3 and 64+4y..64+4y+3 of a tile, and the codes likewise.
__device__ int owned(int thread, int i) { return i / 4 * 64 + 4 * thread + i % 4; }

__device__ void multiply(const float* row_tile, const float* code_tile, int x, int y, float (&sums)[8][8]) {
#pragma unroll
  for (int d = 0; d < depth; ++d) {
    const float4* rows = reinterpret_cast<const float4*>(row_tile + d * tile_stride);
    const float4* codes = reinterpret_cast<const float4*>(code_tile + d * tile_stride);
    const float4 r0 = rows[y], r1 = rows[16 + y], c0 = codes[x], c1 = codes[16 + x];
    const float row[8] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w};
    const float code[8] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(row[i], code[j], sums[i][j]);
  }
}

// The upper bounds of one tile of rows and codes, in the registers of their owners.
template <class T>
__device__ void score_tile(const Search<T>& s, long long first_row, long long first_code, float* shared, float (&sums)[8][8]) {
  constexpr int tile_size = depth * tile_stride;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int d_of_thread = threadIdx.x % depth;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const long long code = first_code + owned(x, j);
    const float start = code < s.code_count ? s.starts[code] : -INFINITY;
    const float norm = code < s.code_count ? s.norms[code] : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const long long row = first_row + owned(y, i);
      sums[i][j] = fmaf(row < s.rows ? s.slacks[row] : 0.0f, norm, start);
    }
  }

  float row_values[4], code_values[4];
  fetch(s.latents, s.row_factors, s.centre, first_row, s.rows, s.dim, d_of_thread, row_values);
  fetch(s.codes, s.code_factors, s.centre, first_code, s.code_count, s.dim, d_of_thread, code_values);
  // the scan of the last tile has read what is overwritten here
  __syncthreads();
  stage(shared, row_values);
  stage(shared + tile_size, code_values);
  __syncthreads();
  int now = 0;
  for (long long d = 0; d < s.dim; d += depth) {
    const bool more = d + depth < s.dim;
    if (more) {
      fetch(s.latents, s.row_factors, s.centre, first_row, s.rows, s.dim, d + depth + d_of_thread, row_values);
      fetch(s.codes, s.code_factors, s.centre, first_code, s.code_count, s.dim, d + depth + d_of_thread, code_values);
    }
    const float* tile = shared + now * 2 * tile_size;
    multiply(tile, tile + tile_size, x, y, sums);
    now ^= 1;
    if (more) {
      stage(shared + now * 2 * tile_size, row_values);
      stage(shared + now * 2 * tile_size + tile_size, code_values);
    }
    __syncthreads();
  }
}

template <class T, int KEEP>
__global__ void __launch_bounds__(threads, 2) score_rows(Search<T> s) {
  // two stages of both tiles while multiplying, then the scores of the tile
  extern __shared__ __align__(16) float shared[];
  const long long first_row = blockIdx.x * (long long)block_rows;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  // for the scan: two threads a row, half of the codes each
  const int scan_row = threadIdx.x % block_rows, scan_half = threadIdx.x / block_rows;
  const int first_column = scan_half * (block_codes / 2);
  Best<float, KEEP> best;
  best.clear();

  const long long tiles = (s.code_count + block_codes - 1) / block_codes;
  for (long long t = blockIdx.y; t < tiles; t += s.splits) {
    float sums[8][8];
    score_tile(s, first_row, t * block_codes, shared, sums);
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) shared[owned(y, i) * score_stride + owned(x, j)] = sums[i][j];
    __syncthreads();
    const float* scores = shared + scan_row * score_stride + first_column;
    for (int j = 0; j < block_codes / 2; ++j) {
      const float score = scores[j];
      if (score > best.score[KEEP - 1]) best.offer(score, int(t * block_codes) + first_column + j);
    }
  }

  // the second half of the threads hand over what they kept
  __syncthreads();
  int* other_codes = reinterpret_cast<int*>(shared + block_rows * KEEP);
  if (scan_half == 1) {
#pragma unroll
    for (int r = 0; r < KEEP; ++r) {
      shared[r * block_rows + scan_row] = best.score[r];
      other_codes[r * block_rows + scan_row] = best.index[r];
    }
  }
  __syncthreads();
  const long long row = first_row + scan_row;
  if (scan_half == 1 || row >= s.rows) return;
  for (int r = 0; r < KEEP; ++r) {
    const int code = other_codes[r * block_rows + scan_row];
    if (code >= 0) best.offer(shared[r * block_rows + scan_row], code);
  }
#pragma unroll
  for (int r = 0; r < KEEP; ++r) {
    const long long at = (row * s.splits + blockIdx.y) * KEEP + r;
    s.best_scores[at] = best.score[r];
    s.best_codes[at] = best.index[r];
  }
}

// The float64 score of a row and a code: what a warp computes together, the same in every lane.
template <class T>
__device__ double exact_score(const Search<T>& s, long long row, long long code) {
  const T* x = s.latents + row * s.dim;
  const T* c = s.codes + code * s.dim;
  double sum = 0.0, square = 0.0;
  for (long long d = threadIdx.x % 32; d < s.dim; d += 32) {
    const double a = double(widen(x[d])), b = double(widen(c[d]));
    if (s.cosine) {
      sum += a * b;
      square += b * b;
    } else {
      sum -= (a - b) * (a - b);
    }
  }
  sum = warp_sum(sum);
  if (!s.cosine) return sum;
  square = warp_sum(square);
  // a code with NaN or inf gives NaN, which is offered to nobody
  return square == 0.0 ? 0.0 : sum / sqrt(square);
}

template <class T>
__device__ void write(const Search<T>& s, long long row, int rank, long long code, double distance) {
  s.indices[row * s.ranks + rank] = code;
  s.distances[row * s.ranks + rank] = float(distance);
}

// Ranks left empty, for want of finite codes, go to the other codes in ascending order at distance infinity.
template <class T, int KEEP>
__device__ void write_ranking(const Search<T>& s, long long row, const Best<double, KEEP>& best) {
  double length = 1.0;
  if (s.cosine) length = sqrt(squared_length(s, s.latents + row * s.dim));
  if (threadIdx.x % 32 != 0) return;
  int other = 0;
#pragma unroll
  for (int rank = 0; rank < KEEP; ++rank) {
    if (rank >= s.ranks) continue;
    if (best.index[rank] >= 0) {
      const double cosine = length > 0.0 ? best.score[rank] / length : 0.0;
      write(s, row, rank, best.index[rank], s.cosine ? 1.0 - cosine : -best.score[rank]);
      continue;
    }
    bool ranked;
    do {
      ranked = false;
#pragma unroll
      for (int r = 0; r < KEEP; ++r) ranked = ranked || best.index[r] == other;
      other += ranked;
    } while (ranked);
    write(s, row, rank, other++, INFINITY);
  }
}

template <class T>
__device__ double twice_error(const Search<T>& s, long long row, int code) {
  const double norm = double(s.norms[code]);
  const double start = s.cosine ? 0.0 : 0.5 * s.slope * norm * norm;
  return 2.0 * ((double(s.slacks[row]) * norm + start) * 1.001 + s.tiny);
}

template <class T, int KEEP>
__global__ void settle_rows(Search<T> s) {
  const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
  if (row >= s.rows) return;
  const unsigned char kind = s.kinds[row];
  if (kind == not_finite) {
    if (threadIdx.x % 32 == 0)
      for (int rank = 0; rank < s.ranks; ++rank) write(s, row, rank, rank, nan(""));
    return;
  }
  bool undecided = kind != normal || *s.codes_beyond_range;
  Best<double, KEEP> ranking;
  ranking.clear();
  if (!undecided) {
    // every lane merges the lists of all splits, and comes to the same
    Best<float, KEEP> best;
    best.clear();
    for (long long at = row * s.splits * KEEP; at < (row + 1) * s.splits * KEEP; ++at)
      if (s.best_codes[at] >= 0) best.offer(s.best_scores[at], s.best_codes[at]);
    int found = 0;
    bool proved = true;
    double least = INFINITY, last = -INFINITY;
#pragma unroll
    for (int r = 0; r < KEEP; ++r) {
      if (best.index[r] < 0) continue;
      ++found;
      last = double(best.score[r]);
      if (r >= s.ranks || !s.exact) continue;
      const double lower = last - twice_error(s, row, best.index[r]);
      if (r + 1 < KEEP && best.index[r + 1] >= 0 && !(lower > double(best.score[r + 1]))) proved = false;
      least = fmin(least, lower);
    }
    undecided = !proved && found == KEEP && last >= least;
    const int ranked = proved ? min(found, s.ranks) : found;
#pragma unroll
    for (int r = 0; r < KEEP; ++r) {
      if (undecided || r >= ranked) continue;
      const double score = exact_score(s, row, best.index[r]);
      if (proved) {
        ranking.score[r] = score;
        ranking.index[r] = best.index[r];
      } else {
        ranking.offer(score, best.index[r]);
      }
    }
  }
  if (!undecided)
    write_ranking(s, row, ranking);
  else if (threadIdx.x % 32 == 0)
    s.queue[atomicAdd(s.queued, 1ull)] = row;
}

template <class T, int KEEP>
__global__ void __launch_bounds__(threads) compare_rows(Search<T> s) {
  __shared__ double scores[threads / 32][KEEP];
  __shared__ int codes[threads / 32][KEEP];
  const int warp = threadIdx.x / 32;
  const unsigned long long queued = *s.queued;
  for (unsigned long long q = blockIdx.x; q < queued; q += gridDim.x) {
    const long long row = s.queue[q];
    Best<double, KEEP> best;
    best.clear();
    for (long long code = warp; code < s.code_count; code += threads / 32) {
      const double score = exact_score(s, row, code);
      // sums of float32 squares stay far inside a double's range: only NaN and inf give NaN and inf
      if (isfinite(score)) best.offer(score, int(code));
    }
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int r = 0; r < KEEP; ++r) {
        scores[warp][r] = best.score[r];
        codes[warp][r] = best.index[r];
      }
    }
    __syncthreads();
    if (warp == 0) {
      for (int w = 1; w < threads / 32; ++w)
        for (int r = 0; r < KEEP; ++r)
          if (codes[w][r] >= 0) best.offer(scores[w][r], codes[w][r]);
      write_ranking(s, row, best);
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace vqkit
