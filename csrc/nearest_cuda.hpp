// Exact nearest-code search on NVIDIA GPUs (sm_80 and later) in plain CUDA C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vqkit {

enum class CudaType : int { float32, float16, bfloat16 };

// All addresses are on the device; nothing is allocated, copied to the host or waited for.
struct CudaNearestProblem {
  std::uintptr_t latents;  // (rows, dim)
  std::uintptr_t codes;    // (code_count, dim)
  CudaType type;
  std::int64_t rows;
  std::int64_t code_count;
  std::int64_t dim;
  int ranks;
  bool cosine;
  bool exact;
  int device;
  std::uintptr_t stream;
  std::uintptr_t workspace;  // cuda_nearest_workspace() bytes, aligned to 256
  std::uintptr_t distances;  // (rows, ranks) float32
  std::uintptr_t indices;    // (rows, ranks) int64
};

// Bytes of scratch; reads the number of multiprocessors of problem.device.
std::size_t cuda_nearest_workspace(const CudaNearestProblem& problem);

// Enqueues the search on the stream. Throws std::runtime_error with CUDA's words when a launch is refused.
void cuda_nearest_codes(const CudaNearestProblem& problem);

// Empty when this build has code for the device, else why not. The first call of all into CUDA happens here.
std::string cuda_refusal(int device);

}  // namespace vqkit
