// What a launch of the value path is to do; see value_attention.cu and step.cu.
#pragma once

#include "launch.cuh"
#include "mam/ops.h"
#include "row.cuh"

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
  float2* normalizer;     // (rows, num_slopes): scratch of general rows
  const int32_t* counts;  // (rows,): what mask_ratio hides, for a draw in a launch of its own
  bool drawn_apart;       // by such a draw; set by launch_value_step

  ContextOutput context;
  Whole whole;  // set by launch_value_step
};

// Whether weights take a power: the draw then has a launch of its own.
inline bool is_sharp(const Weighting& weighting) { return weighting.inverse_temperature != 1.0f; }

// floor(ratio n) of n positions that may be hidden.
__device__ inline int part_to_hide(double ratio, int64_t maskable) {
  return static_cast<int>(floor(ratio * static_cast<double>(maskable)));
}

__device__ inline int64_t count_maskable(const FlagRow& maskable, int64_t positions) {
  if (maskable.data == nullptr) return positions;
  // share: 0
  return block_reduce(count_flags(maskable, positions), Sum());
}

void launch_value_step(ValueStep step, const Launch& where);

}  // namespace mam::cuda
