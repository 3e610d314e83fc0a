// Sampling without replacement: one block a row. A sample of the weights tells where the k-th key
// lies; one pass decides most positions from their random words, and the keys of the others decide
// exactly. A row of which the sample does not tell enough is drawn by all keys.
#include "draw.cuh"
#include "draw_latents.cuh"

namespace mam::cuda {

namespace {

// Rows at a time: the assembler, left alone, spills a few registers for more of them.
constexpr int kSelectBlocks = 4;

// Whole: four weights of a row lie in one piece of memory, as their flags do where there are any
// (Flagged). Sharp: weights have an exponent.
template <bool Whole, bool Flagged, bool Sharp>
__global__ void __launch_bounds__(kRaceThreads, kSelectBlocks)
    select_kernel(Values values, Flags valid, const int32_t* num_samples, Draw draw,
                  Weighting weighting, Sizes sizes, uint8_t* mask) {
  MAM_DYNAMIC_SHARED(uint32_t, shared);
  // phase: set-up
  const int64_t row = blockIdx.x, positions = values.positions;
  const Weights weights{
      values.data,          values.dtype, row * values.stride_row, values.stride_position,
      flag_row(valid, row), weighting.eps};
  const int k = static_cast<int>(min(static_cast<int64_t>(num_samples[row]), positions));
  const RandomRow random = random_row(draw, row);
  mask += row * positions;
  const Candidates candidates{shared, shared + sizes.words,
                              reinterpret_cast<float*>(shared + sizes.words + sizes.most),
                              sizes.words, sizes.most};
  if (positions >= kFewestSampled && k > 0 &&
      draw_in_one_pass<Whole, Flagged, Sharp>(weights, positions, k, random,
                                              weighting.inverse_temperature, candidates, mask))
    return;
  // phase: all keys
  __syncthreads();
  // share: 0
  draw_by_all_keys(weights, positions, k, random, weighting, mask);
}

__global__ void __launch_bounds__(kRaceThreads)
    draw_latents_kernel(int64_t num_latents, int64_t size, Draw draw, int64_t* out) {
  choose_latents(num_latents, size, draw, out);
}

using Kernel = void (*)(Values, Flags, const int32_t*, Draw, Weighting, Sizes, uint8_t*);

template <bool Sharp>
Kernel kernel_for(const Values& weights, const Flags& valid, const uint8_t* mask) {
  const bool whole = by_fours(weights) && by_fours(valid) && aligned(mask, 4);
  if (whole && valid.data == nullptr) return select_kernel<true, false, Sharp>;
  return whole ? select_kernel<true, true, Sharp> : select_kernel<false, false, Sharp>;
}

}  // namespace

size_t select_workspace(int64_t, int64_t) { return 0; }

void select(const Values& weights, const Flags& valid, const int32_t* num_samples, const Draw& draw,
            const Weighting& weighting, uint8_t* mask, void*, const Launch& where) {
  const Sizes sizes = sizes_of(weights.positions);
  const size_t words = sizes.words + 2 * sizes.most;
  const Kernel kernel = weighting.inverse_temperature == 1.0f
                            ? kernel_for<false>(weights, valid, mask)
                            : kernel_for<true>(weights, valid, mask);
  launch("select", kernel, weights.rows, kRaceThreads, words * sizeof(uint32_t), where, weights,
         valid, num_samples, draw, weighting, sizes, mask);
}

void draw_latents(int64_t num_latents, int64_t size, const Draw& draw, int64_t* out,
                  const Launch& where) {
  if (size <= 0) return;
  Draw latents = draw;
  latents.sample_ids = nullptr;
  launch("draw_latents", draw_latents_kernel, 1, kRaceThreads, 0, where, num_latents, size, latents,
         out);
}

}  // namespace mam::cuda
