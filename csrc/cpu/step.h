// A whole masking step of scalar values: the products of the parameters, the pass over the cells,
// and the context. One call, because a step of a few cells takes less than what several calls cost
// their host.
#pragma once

#include <cstdint>

#include "cpu/collapse.h"
#include "cpu/value.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

struct Step {
  Projection parameters;
  const float* out_bias;  // (Dz,)
  Values values;
  Flags valid, maskable;
  const int64_t* chosen;  // the latents that decide, or null to draw them
  int64_t num_chosen;
  const int32_t*
      num_masked;  // (rows,), or null for floor(mask_ratio n) of a row's n maskable positions
  double mask_ratio;
  Draw draw;  // of the positions; that of the latents has the same seed and step
  Weighting weighting;
  bool visible;  // the context is that of the positions that are not masked
  Zeros zeros;
};

// The state for the backward pass, in one piece of memory.
struct State {
  float* mean;        // (rows, latents, heads)
  float* variance;    // (rows, latents, heads)
  float* occupied;    // (rows,): whether a cell has tokens, 1 or 0
  float* average;     // (rows, heads)
  float* directions;  // (heads, Dz)
  float* constant;    // (Dz,)
  float* folded;      // (heads, Dz)
  float* unit;        // (3, Dz)
  float* second;      // (heads, heads)
  float* gram;        // (heads, heads)

  State(float* memory, int64_t rows, int64_t latents, int64_t heads, int64_t width);
  static int64_t size(int64_t rows, int64_t latents, int64_t heads, int64_t width) {
    return rows * (2 * latents * heads + 1 + heads) + 2 * heads * width + 4 * width +
           2 * heads * heads;
  }
};

// mask and importance: (rows, positions); context: (rows, Dz); penalty: one; state: as above.
struct StepOutput {
  uint8_t* mask;
  float *importance, *context, *penalty, *state;
};

void masking_step(const Step& step, const StepOutput& out, int threads);

// Gradients of a loss by context (rows, Dz) and penalty; null: none.
struct StepGradient {
  const float *context, *penalty;
};

// Of the threads allowed, those that a step and its backward pass are worth in a training step:
// all, or one where the work is short.
int threads_worth_step(const Values& values, const Projection& parameters, int allowed);
int threads_worth_backward(int64_t rows, const Projection& parameters, int allowed);

// `state` is read only.
void masking_step_backward(const Projection& parameters, const float* out_bias, int64_t rows,
                           float* state, const StepGradient& incoming,
                           const ProjectionGradient& outgoing, float* grad_out_bias, int threads);

}  // namespace cpu
}  // namespace mam
