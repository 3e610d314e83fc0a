// Attention over scalar values by its exact collapse: a row costs its nonzeros, and no weight is
// ever written. One block works on a row, from its values to its moments, importance and mask. See
// mam_kernels/ops/value_attention/README.md.
//
// Nearly all rows go by read_panel.cuh, panel_series.cuh and cell_draw.cuh; general_row.cuh has the
// others.
#include "cell_draw.cuh"
#include "general_row.cuh"
#include "panel_series.cuh"
#include "read_panel.cuh"
#include "step.cuh"

namespace mam::cuda {

namespace {

__device__ float steepest_of(const float* slope, int64_t num_slopes) {
  float steepest = 0.0f;
  const int count = static_cast<int>(num_slopes);
#pragma unroll 4
  for (int n = threadIdx.x; n < count; n += kRowThreads) {  // trips: N * H / (4 * threads) | 0
    const float size = fabsf(__ldg(slope + n));
    if (size < INFINITY) steepest = fmaxf(steepest, size);
  }
  return block_reduce_of<kRowWarps>(steepest, Max());
}

// floor(mask_ratio n) of the n positions that may be hidden, or what the caller says.
__device__ int positions_to_hide(const ValueStep& step, int64_t row, int64_t maskable) {
  if (step.num_masked != nullptr)
    return static_cast<int>(min(static_cast<int64_t>(step.num_masked[row]), maskable));
  return part_to_hide(step.mask_ratio, maskable);
}

// The mask of a row whose importance is written.
__device__ void draw_cell_by_all_keys(const ValueStep& step, int64_t row, const float* importance,
                                      const FlagRow& maskable, const RandomRow& random,
                                      uint8_t* mask) {
  const int64_t positions = step.values.positions;
  const int64_t count = count_maskable(maskable, positions);
  const Weights weights{importance, DType::float32, 0, 1, maskable, step.weighting.eps};
  draw_by_all_keys(weights, positions, positions_to_hide(step, row, count), random, step.weighting,
                   mask);
}

// Sums over the latents of the means of 8 heads and of their products with those of 8 others: the
// products as a matrix of 8 by 8, the sums in its rows.
struct HeadSums {
  double products[kRowWarps][8][8], totals[kRowWarps][8];
};

// Mean attended output of a cell and its part of the penalty: with the means m and r = out_bias +
// constant (where the cell has tokens), the context is average(m) P + r. `second` gets m^T m.
__device__ __forceinline__ void write_context(const ValueStep& step, int64_t row, bool occupied) {
  __shared__ HeadSums sums;
  __shared__ float average[kRowThreads];
  const ContextOutput& out = step.context;
  const int heads = static_cast<int>(step.heads), latents = static_cast<int>(step.num_latents),
            width = static_cast<int>(out.width);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float* const mean = step.out.mean + row * step.num_slopes;
  const float each = 1.0f / static_cast<float>(latents);
  // phase: context, sums over the latents
#pragma unroll 1
  for (int h = 0; h < heads; h += 8) {  // trips: H / 8
#pragma unroll 1
    for (int g = 0; g < heads; g += 8) {  // trips: H / 8 | 0
      double products[2] = {0.0, 0.0}, totals[2] = {0.0, 0.0};
      const int a = h + lane / 4, b = g + lane / 4, first = 4 * warp + lane % 4;
      if (h == g) {
        const float* at = mean + first * heads + a;
        const bool counts = a < heads;
#pragma unroll 2
        for (int n = first; n - lane % 4 < latents;
             n += 4 * kRowWarps, at += 4 * kRowWarps * heads) {  // trips: N / (8 * warps) | 0
          const double both = counts && n < latents ? *at : 0.0f;
          multiply_add(products, both, both);
          multiply_add(totals, both, 1.0);
        }
      } else {
        // share: 0
#pragma unroll 1
        for (int n = first; n - lane % 4 < latents; n += 4 * kRowWarps) {
          const double left = n < latents && a < heads ? mean[n * heads + a] : 0.0f;
          const double right = n < latents && b < heads ? mean[n * heads + b] : 0.0f;
          multiply_add(products, left, right);
        }
      }
      const int column = 2 * (lane % 4);
      sums.products[warp][lane / 4][column] = products[0];
      sums.products[warp][lane / 4][column + 1] = products[1];
      if (column == 0) sums.totals[warp][lane / 4] = totals[0];
      __syncthreads();
      if (threadIdx.x < 64) {  // share: 2 / warps
        const int i = threadIdx.x / 8, j = threadIdx.x % 8;
        double product = 0.0, total = 0.0;
#pragma unroll
        for (int w = 0; w < kRowWarps; ++w) {
          product += sums.products[w][i][j];
          total += sums.totals[w][i];
        }
        if (h + i < heads && g + j < heads)
          out.second[(row * heads + h + i) * heads + g + j] = static_cast<float>(product);
        if (g == h && j == 0 && h + i < heads) {
          const float mean_of_head = static_cast<float>(total) * each;
          out.average[row * heads + h + i] = mean_of_head;
          if (h + i < kRowThreads) average[h + i] = mean_of_head;
        }
      }
      __syncthreads();
    }
  }

  // phase: context
  float squares = 0.0f;
  const float* const averages = heads <= kRowThreads ? average : out.average + row * heads;
#pragma unroll 1
  for (int c = threadIdx.x; c < width; c += kRowThreads) {  // trips: D / threads
    float constant = 0.0f, context = 0.0f;
    const float2* affine = out.affine + c;
#pragma unroll 4
    for (int h = 0; h < heads; ++h, affine += width) {  // trips: H / 4 | 0
      const float2 of_head = __ldg(affine);
      constant += of_head.y;
      context = fmaf(averages[h], of_head.x, context);
    }
    const float offset = __ldg(out.out_bias + c) + (occupied ? constant : 0.0f);
    context += offset;
    out.context[row * width + c] = context;
    squares = fmaf(offset, context - 0.5f * offset, squares);
  }
  squares = block_reduce_of<kRowWarps>(squares, Sum());
  if (threadIdx.x == 0) {
    out.squares[row] = squares;
    out.occupied[row] = occupied ? 1.0f : 0.0f;
  }
}

// Blocks of a multiprocessor: four where 128 registers a thread are enough, as they are not on
// sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kRowBlocks = 3;
#else
constexpr int kRowBlocks = 4;
#endif

__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    value_kernel(ValueStep step, Sizes sizes) {
  MAM_DYNAMIC_SHARED(uint32_t, shared);
  __shared__ PanelMemory memory;
  __shared__ bool drawn;  // kept here because registers are scarce, as the number to hide
  __shared__ int to_hide;
  // phase: set-up
  if (threadIdx.x == 0) drawn = false;
  const int64_t index = blockIdx.x;
  uint32_t* const nonzero = shared;
  const Candidates list{shared + sizes.words, shared + 2 * sizes.words,
                        reinterpret_cast<float*>(shared + 2 * sizes.words + sizes.most),
                        sizes.words, sizes.most};
  const bool draws = step.mask != nullptr;
  const float steepest = steepest_of(step.slope, step.num_slopes);
  const Panel panel = look_at(row_of(step.values, step.valid, step.hidden, index),
                              draws ? flag_row(step.maskable, index) : FlagRow{nullptr, 0},
                              step.whole, steepest, nonzero, list, memory);
  // phase: power sums
  if (panel.giants > 0) {
    sum_powers(panel, list, memory);
    // phase: moments of the slopes
    if (step.all_slopes)
      write_panel_moments(panel, step.slope, step.num_slopes, memory, step.out,
                          index * step.num_slopes);
    if (draws) {
      // phase: series of the importance
      sum_shares(panel, step.slope, step.latents, step.num_latents, step.num_chosen,
                 static_cast<int>(step.heads), memory);
      // phase: importance of the nonzeros
      const float of_zero = weigh(panel, list, memory);
      if (threadIdx.x == 0) to_hide = positions_to_hide(step, index, panel.maskable);
      __syncthreads();
      const int64_t positions = step.values.positions;
      draw_cell({flag_row(step.valid, index), flag_row(step.maskable, index), step.whole,
                 step.importance + index * positions, step.mask + index * positions},
                panel, of_zero, nonzero, list, positions, to_hide, random_row(step.draw, index),
                step.weighting, drawn);
    }
  } else {
    // share: 0
    general_row(row_of(step.values, step.valid, step.hidden, index), step.values.positions,
                step.slope, step.num_slopes, steepest, step.out, index * step.num_slopes,
                {step.latents, step.num_chosen, step.heads},
                draws ? step.normalizer + index * step.num_slopes : nullptr,
                draws ? step.importance + index * step.values.positions : nullptr,
                *reinterpret_cast<GeneralMemory*>(shared));
  }
  // phase: context
  __syncthreads();
  if (step.context.affine != nullptr) {
    write_context(step, index, panel.valid > 0);
  }
  if (drawn || step.mask == nullptr || step.drawn_apart) return;
  // phase: all keys
  __syncthreads();
  // share: 0
  draw_cell_by_all_keys(step, index, step.importance + index * step.values.positions,
                        flag_row(step.maskable, index), random_row(step.draw, index),
                        step.mask + index * step.values.positions);
}

}  // namespace

void launch_value_step(ValueStep step, const Launch& where) {
  const Values& values = step.values;
  const bool by_four = values.positions % 4 == 0;
  step.whole = {values.crow == nullptr && by_fours(values),
                by_four && by_fours(step.valid) && aligned(step.hidden, 4),
                by_four && by_fours(step.maskable),
                by_four && aligned(step.mask, 4) && aligned(step.importance, 16)};
  // At another temperature than 1 the zeros' weight takes a power and the nonzeros' each its own:
  // the draw is that of the selection, which has them, in a launch of its own.
  const int32_t* const counts = step.num_masked == nullptr ? step.counts : step.num_masked;
  step.drawn_apart = step.mask != nullptr && is_sharp(step.weighting);
  const Sizes sizes = sizes_of(values.positions);
  const size_t bytes = 2 * (sizes.words + sizes.most) * sizeof(uint32_t);
  launch("value_attention", value_kernel, values.rows, kRowThreads,
         bytes < sizeof(GeneralMemory) ? sizeof(GeneralMemory) : bytes, where, step, sizes);
  if (step.drawn_apart)
    select(contiguous(step.importance, values.rows, values.positions), step.maskable, counts,
           step.draw, step.weighting, step.mask, nullptr, where);
}

size_t value_workspace(const Values& values, int64_t slopes) {
  return values.rows * slopes * sizeof(float2);
}

void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
                     const Moments& out, void*, const Launch& where) {
  ValueStep step{};
  step.values = values;
  step.valid = valid;
  step.slope = slope;
  step.num_slopes = slopes;
  step.heads = 1;
  step.num_latents = slopes;
  step.all_slopes = true;
  step.out = out;
  launch_value_step(step, where);
}

void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope,
                int64_t num_latents, int64_t heads, const int64_t* latents, int64_t num_chosen,
                const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void* workspace,
                const Launch& where) {
  ValueStep step{};
  step.values = values;
  step.valid = valid;
  step.maskable = maskable;
  step.slope = slope;
  step.num_slopes = num_latents * heads;
  step.num_latents = num_latents;
  step.heads = heads;
  step.all_slopes = true;
  step.out = out;
  step.latents = latents;
  step.num_chosen = num_chosen;
  step.num_masked = num_masked;
  step.draw = draw;
  step.weighting = weighting;
  step.mask = mask;
  step.importance = importance;
  step.normalizer = static_cast<float2*>(workspace);
  launch_value_step(step, where);
}

}  // namespace mam::cuda
