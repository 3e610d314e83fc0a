// The draw of one row, on top of the kernels: keys, k-th key, mask.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/workers.h"

namespace mam {
namespace cpu {

// Scratch memory of a draw for rows of so many positions.
struct DrawScratch {
  Buffer<int32_t> keys, candidates;
  void reset(int64_t positions) {
    keys.reset(positions + kPadding);
    candidates.reset(2 * (positions + kPadding));
  }
};

// Where a row's random bits come from.
RowDraw row_draw(const Draw& draw, int64_t row);

// k positions in proportion to their weights; contiguous row, flags may be null.
void draw_row(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
              const RowDraw& draw, const Weighting& weighting, const DrawScratch& scratch,
              uint8_t* mask);

// The same where most positions share the weight `of_zero` and only the entries have their own, in
// two halves, of which the first does not need the weights. It returns how many positions the flags
// leave. See mam_kernels/ops/value_attention/README.md.
int64_t race_uniforms(const uint8_t* flags, int64_t positions, const RowDraw& draw,
                      const std::vector<Ahead>& ahead, const DrawScratch& scratch);

// The second; false where the scale of the uniforms does not tell the keys at the threshold apart,
// and nothing was drawn.
bool draw_grouped_row(const Entries& entries, const float* importance, float of_zero,
                      int64_t positions, int64_t left, int64_t k, const Weighting& weighting,
                      const DrawScratch& scratch, uint8_t* mask);

}  // namespace cpu
}  // namespace mam
