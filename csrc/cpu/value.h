// The pass over the cells, for what is built on it.
#pragma once

#include <cstdint>

#include "mam/ops.h"

namespace mam {
namespace cpu {

// Zeros that are drawn apart from the other values, each alike: num_masked (rows,) of them, or
// where that is null floor(ratio n) of a row's n maskable zeros. Null and a ratio below 0: they are
// drawn with the rest.
struct Zeros {
  const int32_t* num_masked = nullptr;
  double ratio = -1.0;

  bool apart() const { return num_masked || ratio >= 0.0; }
};

// The parts of the masking step beside the moments. num_masked: (rows,), or null for
// floor(mask_ratio n) of a row's n maskable positions. Where zeros are drawn apart, both concern
// the other values, and the importance of a zero is 0.
struct Masking {
  Flags maskable;
  const int64_t* latents;
  int64_t num_chosen, heads;
  const int32_t* num_masked;
  double mask_ratio;
  Zeros zeros;
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
