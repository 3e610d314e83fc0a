// Closed form of attention over scalar tokens, before and after the pass over the cells: see
// mam_kernels/ops/value_attention/collapse.py for the equations. Everything is float32, contiguous
// and row-major; nothing may overlap. The results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace mam {
namespace cpu {

// The parameters, by their names and shapes in PyTorch; Dz = width.
struct Projection {
  const float* latents;       // (latents, Dz)
  const float* in_weight;     // (3 Dz, Dz)
  const float* in_bias;       // (3 Dz,)
  const float* token_weight;  // (Dz,)
  const float* token_bias;    // (Dz,)
  const float* out_weight;    // (Dz, Dz)
  int64_t num_latents, heads, width;

  int64_t head_width() const { return width / heads; }
};

// slope (latents, heads), directions (heads, Dz), constant (Dz,); for the backward pass folded
// (heads, Dz) and unit (3, Dz): keys and values of a unit, and the value of nothing.
struct Projected {
  float *slope, *directions, *constant, *folded, *unit;
};

void project(const Projection& from, const Projected& to, int threads);

// Gradients of a loss by what `project` returned.
struct ProjectedGradient {
  const float *slope, *directions, *constant;
};

// And by the parameters.
struct ProjectionGradient {
  float *latents, *in_weight, *in_bias, *token_weight, *token_bias, *out_weight;
};

void project_backward(const Projection& from, const float* folded, const float* unit,
                      const ProjectedGradient& incoming, const ProjectionGradient& outgoing,
                      int threads);

// Means of the values (rows, latents, heads), their variances, which the gradient alone needs, and
// whether a cell has tokens, 1 or 0 (rows,).
struct ContextInput {
  const float *mean, *variance, *occupied, *directions, *constant, *out_bias;
  int64_t rows, num_latents, heads, width;
};

// context (rows, Dz), penalty (); for the backward pass average (rows, heads), second and gram
// (heads, heads).
struct ContextOutput {
  float *context, *penalty, *average, *second, *gram;
};

void context(const ContextInput& from, const ContextOutput& to, int threads);

// By the slopes (latents, heads), since d mean / d slope is the variance: no gradient of the means
// is stored.
struct ContextGradient {
  float *slope, *directions, *constant, *out_bias;
};

void context_backward(const ContextInput& from, const float* average, const float* second,
                      const float* gram, const float* grad_context, float grad_penalty,
                      const ContextGradient& outgoing, int threads);

}  // namespace cpu
}  // namespace mam
