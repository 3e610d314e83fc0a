// What a launch of the value path is to do; see value_attention.cu and step.cu.
#pragma once

#include "launch.cuh"
#include "mam/ops.h"

namespace mam::cuda {

// Which parts of a row can be read and written four positions at a time.
struct Whole {
  bool values, valid, maskable, out;  // of absent flags: true
};

// Context of a cell and its part of the penalty, where `affine` is not null: for each head and
// element the direction and the head's part of the constant.
struct ContextOutput {
  const float2* affine;   // (heads, width)
  const float* out_bias;  // (width,)
  int64_t width;
  float *context, *average, *second, *squares, *occupied;  // (rows, ...)
};

struct ValueStep {
  Values values;
  Flags valid, maskable;
  const uint8_t*
      hidden;  // (rows, positions), contiguous: positions that are not attended to; null: none
  const float* slope;  // (num_latents, heads)
  int64_t num_slopes, num_latents, heads;
  bool all_slopes;  // false: the moments are not wanted, and may not be written
  Moments out;      // log_partition may be null

  // The draw, where `mask` is not null.
  const int64_t* latents;
  int64_t num_chosen;
  const int32_t* num_masked;  // (rows,), or null for mask_ratio
  double mask_ratio;
  Draw draw;
  Weighting weighting;
  uint8_t* mask;
  float* importance;
  float2* normalizer;  // (rows, num_slopes): scratch of general rows
  int32_t* counts;     // (rows,): scratch of a draw at a temperature other than 1

  ContextOutput context;
  Whole whole;  // set by launch_value_step
};

void launch_value_step(ValueStep step, const Launch& where);

}  // namespace mam::cuda
