// A whole masking step of scalar values on the GPU, and its gradient: the counterpart of
// csrc/cpu/step.h, whose structures these are but for the memory that a launch needs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mam/ops.h"

namespace mam {
namespace cuda {

// The parameters, by their names and shapes in PyTorch; Dz = width. float32, contiguous.
struct Projection {
  const float* latents;       // (latents, Dz)
  const float* in_weight;     // (3 Dz, Dz)
  const float* in_bias;       // (3 Dz,)
  const float* token_weight;  // (Dz,)
  const float* token_bias;    // (Dz,)
  const float* out_weight;    // (Dz, Dz)
  int64_t num_latents, heads, width;
};

struct Step {
  Projection parameters;
  const float* out_bias;  // (Dz,)
  Values values;
  Flags valid, maskable;
  const int64_t* chosen;  // the latents that decide, or null to draw them
  int64_t num_chosen;
  const int32_t* num_masked;  // (rows,), or null for floor(mask_ratio n) of n maskable positions
  double mask_ratio;
  Draw draw;  // of the positions; that of the latents has the same seed and step
  Weighting weighting;
  bool visible;  // the context is that of the positions that are not masked
};

// mask and importance: (rows, positions); context: (rows, Dz); penalty: one; state: as
// mam_kernels/ops/value_attention/arguments.py lays it out.
struct StepOutput {
  uint8_t* mask;
  float *importance, *context, *penalty, *state;
};

struct StepGradient {
  const float *context, *penalty;  // null: zero
};

struct ParameterGradients {
  float *latents, *in_weight, *in_bias, *token_weight, *token_bias, *out_weight, *out_bias;
};

int64_t state_size(int64_t rows, int64_t latents, int64_t heads, int64_t width);
size_t step_workspace(int64_t rows, int64_t latents, int64_t heads, int64_t width,
                      int64_t num_chosen);
void masking_step(const Step& step, const StepOutput& out, void* workspace, const Launch& launch);

size_t step_backward_workspace(int64_t rows, int64_t latents, int64_t heads, int64_t width);
void masking_step_backward(const Projection& parameters, const float* out_bias, int64_t rows,
                           const float* state, const StepGradient& incoming,
                           const ParameterGradients& out, void* workspace, const Launch& launch);

}  // namespace cuda
}  // namespace mam
