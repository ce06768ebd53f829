// Launches the kernels of nearest_kernels.cuh; their memory is one workspace that the caller allocates.

#include "nearest_cuda.hpp"

#include <algorithm>
#include <stdexcept>

#include "nearest_kernels.cuh"

namespace vqkit {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device current for a scope: this library's runtime has its own idea of which one is.
struct DeviceScope {
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceScope() { cudaSetDevice(before); }
  int before = 0;
};

int processors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// two more than the ranks; each value is a set of kernels
int kept(int ranks) { return ranks == 1 ? 3 : 10; }

// Parts of the codebook that separate blocks scan, so that few rows still fill the device.
int split_count(const CudaNearestProblem& p) {
  const std::int64_t row_blocks = std::max<std::int64_t>((p.rows + block_rows - 1) / block_rows, 1);
  const std::int64_t tiles = (p.code_count + block_codes - 1) / block_codes;
  const std::int64_t wanted = (4 * processors(p.device) + row_blocks - 1) / row_blocks;
  return int(std::min({std::max<std::int64_t>(wanted, 1), tiles, std::int64_t(most_splits)}));
}

// Hands out aligned parts of the workspace; from address 0 it only counts.
struct Carver {
  std::uintptr_t at;
  template <class T>
  T* take(std::int64_t count) {
    T* here = reinterpret_cast<T*>(at);
    at += (std::uintptr_t(count) * sizeof(T) + 255) / 256 * 256;
    return here;
  }
};

template <class T>
Search<T> lay_out(const CudaNearestProblem& p, int splits, Carver& carver) {
  const double unit = 5.9604644775390625e-8;  // 2^-24
  Search<T> s{};
  s.latents = reinterpret_cast<const T*>(p.latents);
  s.codes = reinterpret_cast<const T*>(p.codes);
  s.rows = p.rows;
  s.code_count = p.code_count;
  s.dim = p.dim;
  s.ranks = p.ranks;
  s.splits = splits;
  s.cosine = p.cosine;
  s.exact = p.exact;
  // four roundings more than on a CPU: cosine's factors are float32 here
  s.slope = p.exact ? 1.125 * double(p.dim + 12) * unit : 0.0;
  s.tiny = p.exact ? 16.0 * double(p.dim + 1) * 1.17549435e-38 : 0.0;
  s.distances = reinterpret_cast<float*>(p.distances);
  s.indices = reinterpret_cast<long long*>(p.indices);
  // zeroed before the search: these two come first
  s.queued = carver.take<unsigned long long>(1);
  s.codes_beyond_range = carver.take<int>(1);
  s.centre = carver.take<float>(p.dim);
  s.starts = carver.take<float>(p.code_count);
  s.norms = carver.take<float>(p.code_count);
  s.code_factors = carver.take<float>(p.code_count);
  s.slacks = carver.take<float>(p.rows);
  s.row_factors = carver.take<float>(p.rows);
  s.kinds = carver.take<unsigned char>(p.rows);
  s.best_scores = carver.take<float>(p.rows * splits * kept(p.ranks));
  s.best_codes = carver.take<int>(p.rows * splits * kept(p.ranks));
  s.queue = carver.take<long long>(p.rows);
  return s;
}

template <class T, int KEEP>
void launch_scores(const Search<T>& s, cudaStream_t stream) {
  const auto kernel = score_rows<T, KEEP>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, score_bytes), "cudaFuncSetAttribute");
  const dim3 grid(unsigned((s.rows + block_rows - 1) / block_rows), unsigned(s.splits));
  kernel<<<grid, threads, score_bytes, stream>>>(s);
}

template <class T, int KEEP>
void launch(const Search<T>& s, int multiprocessors, cudaStream_t stream) {
  const auto warps = [](long long count) { return unsigned((count * 32 + threads - 1) / threads); };
  check(cudaMemsetAsync(s.queued, 0, 512, stream), "cudaMemsetAsync");
  find_centre<<<unsigned((s.dim + threads - 1) / threads), threads, 0, stream>>>(s);
  measure_codes<<<warps(s.code_count), threads, 0, stream>>>(s);
  measure_rows<<<warps(s.rows), threads, 0, stream>>>(s);
  launch_scores<T, KEEP>(s, stream);
  settle_rows<T, KEEP><<<warps(s.rows), threads, 0, stream>>>(s);
  // how many rows are queued is known on the device only
  const unsigned blocks = unsigned(std::min<long long>(s.rows, 4LL * multiprocessors));
  compare_rows<T, KEEP><<<blocks, threads, 0, stream>>>(s);
  check(cudaGetLastError(), "nearest_codes");
}

template <class T>
void search(const CudaNearestProblem& p) {
  Carver carver{p.workspace};
  const Search<T> s = lay_out<T>(p, split_count(p), carver);
  const cudaStream_t stream = reinterpret_cast<cudaStream_t>(p.stream);
  const int multiprocessors = processors(p.device);
  kept(p.ranks) == 3 ? launch<T, 3>(s, multiprocessors, stream) : launch<T, 10>(s, multiprocessors, stream);
}

}  // namespace

std::size_t cuda_nearest_workspace(const CudaNearestProblem& problem) {
  Carver carver{0};
  lay_out<float>(problem, split_count(problem), carver);
  return carver.at;
}

void cuda_nearest_codes(const CudaNearestProblem& problem) {
  if (problem.rows == 0) return;
  const DeviceScope scope(problem.device);
  if (problem.type == CudaType::float32) return search<float>(problem);
  if (problem.type == CudaType::float16) return search<__half>(problem);
  search<__nv_bfloat16>(problem);
}

std::string cuda_refusal(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("CUDA: ") + cudaGetErrorString(error);
  if (device < 0 || device >= count) return "CUDA device " + std::to_string(device) + " of " + std::to_string(count);
  try {
    const DeviceScope scope(device);
    cudaFuncAttributes attributes;
    // fails when no architecture in this build fits the device
    error = cudaFuncGetAttributes(&attributes, measure_rows<float>);
  } catch (const std::runtime_error& failure) {
    return failure.what();
  }
  if (error == cudaSuccess) return "";
  // a refused query must not be reported by the next launch
  cudaGetLastError();
  return std::string("no code for this device in this build: ") + cudaGetErrorString(error);
}

}  // namespace vqkit
