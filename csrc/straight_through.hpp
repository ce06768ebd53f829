// Gather of the selected codes, the squared error, and the gradients of both.
#pragma once

#include <cstdint>

namespace vqkit {

template <class T>
struct Selection {
  const T* latents;             // (rows, dim)
  const T* codes;               // (code_count, dim)
  const std::int64_t* indices;  // (rows, width): the row's codes are averaged; -1 first masks the row
  std::int64_t rows;
  std::int64_t dim;
  std::int64_t code_count;
  std::int64_t width;
  int threads;
};

struct LossGradients {
  double commitment;
  double codebook;
  bool rotation;
};

// quantized (rows, dim), zero where masked. Returns the mean of (latents - quantized)^2 over the unmasked rows, 0 without any.
// Throws std::out_of_range for an index outside [0, code_count) in an unmasked row.
template <class T>
double straight_through(const Selection<T>& selection, T* quantized);

// Gradients towards the latents (straight-through or the rotation trick, plus the commitment loss) and towards the codes
// (the codebook loss). The same bits for any number of threads.
template <class T>
void straight_through_backward(const Selection<T>& selection, const T* grad_quantized, const LossGradients& losses, T* grad_latents,
                               T* grad_codes);

}  // namespace vqkit
