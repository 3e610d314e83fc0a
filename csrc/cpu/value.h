// The pass over the cells, for what is built on it.
#pragma once

#include <cstdint>

#include "mam/ops.h"

namespace mam {
namespace cpu {

// The parts of the masking step beside the moments. num_masked: (rows,), or null for
// floor(mask_ratio n) of a row's n maskable positions.
struct Masking {
  Flags maskable;
  const int64_t* latents;
  int64_t num_chosen, heads;
  const int32_t* num_masked;
  double mask_ratio;
  Draw draw;
  Weighting weighting;
  uint8_t* mask;
  float* importance;
};

// As value_attention and value_mask of mam/ops.h. A null out.log_partition is left out.
void attend(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
            const Moments& out, const Masking* masking, int threads);

}  // namespace cpu
}  // namespace mam
