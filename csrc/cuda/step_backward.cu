// The gradient of the masking step of step.cu: of the context and the penalty, by the parameters.
// See mam_kernels/ops/value_attention/collapse.py for the equations. Three launches; every sum has
// a fixed order.
#include "block.cuh"
#include "cuda/step.h"
#include "launch.cuh"
#include "step_memory.cuh"

namespace mam::cuda {

namespace {

constexpr int kBackThreads = 256, kBackWarps = kBackThreads / kWarp;
constexpr int kHeadThreads = 256, kHeadWarps = kHeadThreads / kWarp;
constexpr int kHeadSplits = 8;  // blocks of a head that add up the gradient over its partial sums
constexpr int64_t kMostPartials = 128;  // blocks that add up the gradient over the cells

// Sums of a block of cells: by the slopes, the directions, the bias and the constant.
struct Partials {
  float *slope, *directions, *bias, *constant;  // (partials, ...)
  int64_t each;                                 // numbers of one block

  __device__ Partials(float* memory, int64_t slopes, int64_t directed, int64_t width)
      : slope(memory),
        directions(memory + slopes),
        bias(memory + slopes + directed),
        constant(memory + slopes + directed + width),
        each(slopes + directed + 2 * width) {}
};

struct RowsBackward {
  const float *grad_context, *grad_penalty;  // null: zero
  const float *mean, *variance, *occupied, *average, *directions, *constant, *gram, *out_bias;
  int64_t rows, latents, heads, width;
  bool in_shared;      // whether the sums of a block fit in shared memory
  float* partials;     // (blocks, slopes + heads Dz + 2 Dz)
  unsigned* finished;  // (heads,) blocks of heads_backward_kernel that are done: set to 0
};

__device__ float twice_penalty(const float* grad_penalty, int64_t rows) {
  return grad_penalty == nullptr ? 0.0f
                                 : *grad_penalty * 2.0f / static_cast<float>(rows > 0 ? rows : 1);
}

// A block takes every gridDim.x-th cell.
__global__ void __launch_bounds__(kBackThreads) rows_backward_kernel(RowsBackward of) {
  MAM_DYNAMIC_SHARED(float, shared);
  const int width = static_cast<int>(of.width), heads = static_cast<int>(of.heads),
            slopes = static_cast<int>(of.latents * of.heads);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float latents = static_cast<float>(of.latents);
  const float twice = twice_penalty(of.grad_penalty, of.rows);
  float *const pulled = shared, *const pull = pulled + width, *const gram = pull + heads;
  float* const sums_in_shared = gram + heads * heads;
  float* const kept =
      of.partials + blockIdx.x * static_cast<int64_t>(slopes + heads * width + 2 * width);
  const Partials sum(of.in_shared ? sums_in_shared : kept, slopes, heads * width, width);
  for (int i = threadIdx.x; i < heads * heads; i += kBackThreads)  // trips: 1
    gram[i] = twice * of.gram[i];
  if (blockIdx.x == 0)  // share: 1 / blocks
    for (int h = threadIdx.x; h < heads; h += kBackThreads) of.finished[h] = 0;  // trips: 1
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < sum.each;
       i += kBackThreads)  // trips: (N * H + H * D + 2 * D) / threads
    sum.slope[i] = 0.0f;
  __syncthreads();
#pragma unroll 1
  for (int64_t row = blockIdx.x; row < of.rows; row += gridDim.x) {  // trips: B / blocks
    const float there = of.occupied[row];
    const float* const average = of.average + row * heads;
    // phase: pulled
#pragma unroll 1
    for (int c = threadIdx.x; c < width; c += kBackThreads) {  // trips: D / threads
      const float offset = fmaf(there, of.constant[c], of.out_bias[c]);
      float pull_of = twice * latents * offset, attended = 0.0f;
      if (of.grad_context != nullptr) pull_of += of.grad_context[row * width + c];
      pulled[c] = pull_of;
#pragma unroll 4
      for (int h = 0; h < heads; ++h) {  // trips: H / 4 | 0
        const float of_head = average[h];
        attended = fmaf(of_head, of.directions[h * width + c], attended);
        sum.directions[h * width + c] = fmaf(of_head, pull_of, sum.directions[h * width + c]);
      }
      const float by_offset = fmaf(twice * latents, attended, pull_of);
      sum.bias[c] += by_offset;
      sum.constant[c] = fmaf(there, by_offset, sum.constant[c]);
    }
    __syncthreads();
#pragma unroll 1
    for (int h = warp; h < heads; h += kBackWarps) {  // trips: H / warps
      float dot = 0.0f;
#pragma unroll 4
      for (int c = lane; c < width; c += kWarp)  // trips: D / 128 | 0
        dot = fmaf(pulled[c], of.directions[h * width + c], dot);
      dot = sum_of_warp(dot);
      if (lane == 0) pull[h] = dot / latents;
    }
    __syncthreads();
    // phase: slopes
    const float* const mean = of.mean + row * slopes;
    const float* const variance = of.variance + row * slopes;
#pragma unroll 1
    for (int i = threadIdx.x; i < slopes; i += kBackThreads) {  // trips: N * H / threads
      const int h = i % heads, first = i - h;
      float by_mean = pull[h];
#pragma unroll 4
      for (int g = 0; g < heads; ++g)  // trips: H / 4 | 0
        by_mean = fmaf(mean[first + g], gram[g * heads + h], by_mean);
      sum.slope[i] = fmaf(by_mean, variance[i], sum.slope[i]);
    }
    __syncthreads();
  }
  // phase: write
  if (of.in_shared)
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < sum.each;
         i += kBackThreads)  // trips: (N * H + H * D + 2 * D) / threads
      kept[i] = sum.slope[i];
}

// What decides the gradients of the parameters, in which each head has a part of its own.
struct ByHead {
  float *slope, *direction, *constant, *folded;  // (latents, heads), (heads, Dz) three times
  float *unit, *nothing;                         // (2 Dz,), (Dz,)
};

struct HeadsBackward {
  Projection parameters;
  const float *partials, *grad_penalty, *directions, *units, *second;
  int64_t blocks, rows;  // of rows_backward_kernel; cells
  ParameterGradients out;
  ByHead by;
  unsigned* finished;
};

// The sum over the blocks of rows_backward_kernel of one number.
__device__ __forceinline__ float sum_partials(const float* partials, int64_t blocks, int64_t each) {
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t b = 0; b < blocks; ++b) sum += partials[b * each];  // trips: partials / 8 | 0
  return sum;
}

// One block a head and split, and one for the bias. The blocks of a head add up its partial sums;
// the last one to be done finds what follows from its own parameters alone.
__global__ void __launch_bounds__(kHeadThreads) heads_backward_kernel(HeadsBackward of) {
  MAM_DYNAMIC_SHARED(float, shared);
  __shared__ bool last;
  const Projection& from = of.parameters;
  const int width = static_cast<int>(from.width), heads = static_cast<int>(from.heads),
            depth = width / heads, latents = static_cast<int>(from.num_latents);
  const int head = blockIdx.x / kHeadSplits, split = blockIdx.x % kHeadSplits;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t slopes = static_cast<int64_t>(latents) * heads,
                each = slopes + static_cast<int64_t>(heads + 2) * width;
  const float* const bias = of.partials + slopes + static_cast<int64_t>(heads) * width;
  if (head == heads) {  // share: 1 / blocks
#pragma unroll 1
    for (int c = threadIdx.x; c < width; c += kHeadThreads)  // trips: D / threads
      of.out.out_bias[c] = sum_partials(bias + c, of.blocks, each);
    return;
  }
  // phase: sums
  const float twice = twice_penalty(of.grad_penalty, of.rows);
  const float scale = rsqrtf(static_cast<float>(depth));
  float *const direction_of = of.by.direction + static_cast<int64_t>(head) * width,
               *const constant_of = of.by.constant + static_cast<int64_t>(head) * width;
#pragma unroll 1
  for (int i = split * kHeadThreads + threadIdx.x; i < latents + 2 * width;
       i += kHeadSplits * kHeadThreads) {  // trips: (N + 2 * D) / (8 * threads)
    if (i < latents) {                     // share: N / (N + 2 * D)
      of.by.slope[i * heads + head] =
          scale * sum_partials(of.partials + i * heads + head, of.blocks, each);
    } else if (i < latents + width) {  // share: D / (N + 2 * D)
      const int c = i - latents;
      float sum = sum_partials(of.partials + slopes + head * width + c, of.blocks, each);
      for (int g = 0; g < heads; ++g)  // trips: H
        sum = fmaf(twice * of.second[head * heads + g], of.directions[g * width + c], sum);
      direction_of[c] = sum;
    } else {  // share: D / (N + 2 * D)
      const int c = i - latents - width;
      constant_of[c] = sum_partials(bias + width + c, of.blocks, each);
    }
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(of.finished + head, 1u) + 1 == kHeadSplits;
  __syncthreads();
  if (!last) return;
  // share: 1 / 8
  {
    // phase: folded
    __threadfence();
    float *const by_slope = shared, *const by_direction = by_slope + latents,
                 *const by_constant = by_direction + width, *const by_folded = by_constant + width;
#pragma unroll 1
    for (int n = threadIdx.x; n < latents; n += kHeadThreads)  // trips: N / threads
      by_slope[n] = __ldcg(of.by.slope + n * heads + head);
#pragma unroll 1
    for (int c = threadIdx.x; c < width; c += kHeadThreads) {  // trips: D / threads
      by_direction[c] = __ldcg(direction_of + c);
      by_constant[c] = __ldcg(constant_of + c);
    }
    __syncthreads();
    float by_bias = 0.0f;
#pragma unroll 1
    for (int n = lane; n < latents; n += kWarp) by_bias += by_slope[n];  // trips: N / 32
    by_bias = sum_of_warp(by_bias);
#pragma unroll 1
    for (int c = threadIdx.x; c < width; c += kHeadThreads) {  // trips: D / threads
      float sum = 0.0f;
#pragma unroll 8
      for (int n = 0; n < latents; ++n)  // trips: N / 8 | 0
        sum = fmaf(by_slope[n], from.latents[static_cast<int64_t>(n) * width + c], sum);
      by_folded[c] = sum;
      of.by.folded[static_cast<int64_t>(head) * width + c] = sum;
    }
    __syncthreads();
    // phase: units
    const float* const query = from.in_weight + static_cast<int64_t>(head) * depth * width;
#pragma unroll 1
    for (int i = warp; i < depth; i += kHeadWarps) {  // trips: D / H / warps
      const int at = head * depth + i;
      float key = 0.0f, gain = 0.0f, nothing = 0.0f;
#pragma unroll 4
      for (int c = lane; c < width; c += kWarp) {  // trips: D / 128 | 0
        const float out = from.out_weight[static_cast<int64_t>(c) * width + at];
        key = fmaf(query[static_cast<int64_t>(i) * width + c], by_folded[c], key);
        gain = fmaf(out, by_direction[c], gain);
        nothing = fmaf(out, by_constant[c], nothing);
      }
      key = fmaf(by_bias, from.in_bias[at], sum_of_warp(key));
      gain = sum_of_warp(gain);
      nothing = sum_of_warp(nothing);
      if (lane == 0) {
        of.by.unit[at] = key;
        of.by.unit[width + at] = gain;
        of.by.nothing[at] = nothing;
        // The constant of a key cancels in the softmax, and its bias has no gradient.
        of.out.in_bias[at] = of.units[at] * by_bias;
        of.out.in_bias[width + at] = 0.0f;
        of.out.in_bias[2 * width + at] = nothing;
      }
    }
  }
}

struct RestBackward {
  Projection parameters;
  const float *folded, *units;
  ByHead by;
  ParameterGradients out;
  int64_t columns, squares;  // blocks with kWarp columns of the token's projection; of products
};

// The products of Dz by Dz, one number of each matrix a thread.
__device__ __forceinline__ void write_products(const RestBackward& of, int64_t at) {
  const Projection& from = of.parameters;
  const int width = static_cast<int>(from.width), depth = width / static_cast<int>(from.heads);
  const int64_t square = static_cast<int64_t>(width) * width;
  if (at >= square) return;
  const int row = static_cast<int>(at / width), column = static_cast<int>(at % width);
  const int of_row = row / depth * width + column, of_column = column / depth * width + row;
  const float weight = from.token_weight[column];
  of.out.in_weight[at] = of.units[row] * of.by.folded[of_row];
  of.out.in_weight[square + at] = of.by.unit[row] * weight;
  of.out.in_weight[2 * square + at] =
      fmaf(of.by.unit[width + row], weight, of.by.nothing[row] * from.token_bias[column]);
  of.out.out_weight[at] = fmaf(of.by.constant[of_column], of.units[2 * width + column],
                               of.by.direction[of_column] * of.units[width + column]);
}

__global__ void __launch_bounds__(kBackThreads) rest_backward_kernel(RestBackward of) {
  __shared__ float weight[kBackWarps][kWarp], bias[kBackWarps][kWarp];
  const Projection& from = of.parameters;
  const int width = static_cast<int>(from.width), heads = static_cast<int>(from.heads);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (blockIdx.x < of.columns) {  // share: D / 32 / blocks
    const int c = blockIdx.x * kWarp + lane;
    const float* const in = from.in_weight + static_cast<int64_t>(width) * width + c;
    float by_weight = 0.0f, by_bias = 0.0f;
    if (c < width) {
#pragma unroll 4
      for (int r = warp; r < width; r += kBackWarps) {  // trips: D / warps / 4 | 0
        const float key = in[static_cast<int64_t>(r) * width],
                    value = in[static_cast<int64_t>(width + r) * width];
        by_weight = fmaf(key, of.by.unit[r], by_weight);
        by_weight = fmaf(value, of.by.unit[width + r], by_weight);
        by_bias = fmaf(value, of.by.nothing[r], by_bias);
      }
    }
    weight[warp][lane] = by_weight;
    bias[warp][lane] = by_bias;
    __syncthreads();
    if (warp == 0 && c < width) {
      for (int w = 1; w < kBackWarps; ++w) {
        by_weight += weight[w][lane];
        by_bias += bias[w][lane];
      }
      of.out.token_weight[c] = by_weight;
      of.out.token_bias[c] = by_bias;
    }
    return;
  }
  if (blockIdx.x < of.columns + of.squares) {  // share: D * D / 256 / blocks
    write_products(of, (blockIdx.x - of.columns) * kBackThreads + threadIdx.x);
    return;
  }
  // share: N * D / 256 / blocks
  {
    const int64_t i = (blockIdx.x - of.columns - of.squares) * kBackThreads + threadIdx.x;
    if (i >= from.num_latents * width) return;
    const int64_t n = i / width, c = i % width;
    float sum = 0.0f;
#pragma unroll 4
    for (int h = 0; h < heads; ++h)  // trips: H / 4 | 0
      sum = fmaf(of.by.slope[n * heads + h], of.folded[h * width + c], sum);
    of.out.latents[i] = sum;
  }
}

// Blocks of rows_backward_kernel: one at least, which sets the counters.
int64_t num_partials(int64_t rows) {
  return rows < 1 ? 1 : rows < kMostPartials ? rows : kMostPartials;
}

struct BackwardMemory {
  float* partials;
  ByHead by;
  unsigned* finished;
  size_t bytes;

  BackwardMemory(void* memory, int64_t rows, int64_t latents, int64_t heads, int64_t width) {
    Pieces pieces{static_cast<char*>(memory)};
    partials = pieces.take<float>(num_partials(rows) * (latents * heads + (heads + 2) * width));
    by.slope = pieces.take<float>(latents * heads);
    by.direction = pieces.take<float>(heads * width);
    by.constant = pieces.take<float>(heads * width);
    by.folded = pieces.take<float>(heads * width);
    by.unit = pieces.take<float>(2 * width);
    by.nothing = pieces.take<float>(width);
    finished = pieces.take<unsigned>(heads);
    bytes = pieces.bytes;
  }
};

}  // namespace

size_t step_backward_workspace(int64_t rows, int64_t latents, int64_t heads, int64_t width) {
  return BackwardMemory(nullptr, rows, latents, heads, width).bytes;
}

void masking_step_backward(const Projection& parameters, const float* out_bias, int64_t rows,
                           const float* state, const StepGradient& incoming,
                           const ParameterGradients& out, void* workspace, const Launch& where) {
  constexpr size_t kMostShared = 96 * 1024;
  const int64_t latents = parameters.num_latents, heads = parameters.heads,
                width = parameters.width;
  const State kept(const_cast<float*>(state), rows, latents, heads, width);
  const BackwardMemory memory(workspace, rows, latents, heads, width);
  const int64_t blocks = num_partials(rows);
  const size_t always = (width + heads + heads * heads) * sizeof(float),
               sums = (latents * heads + (heads + 2) * width) * sizeof(float);
  const bool in_shared = always + sums <= kMostShared;
  launch("rows_backward", rows_backward_kernel, blocks, kBackThreads,
         in_shared ? always + sums : always, where,
         RowsBackward{incoming.context, incoming.penalty, kept.mean, kept.variance, kept.occupied,
                      kept.average, kept.directions, kept.constant, kept.gram, out_bias, rows,
                      latents, heads, width, in_shared, memory.partials, memory.finished});
  const size_t of_head = (latents + 3 * width) * sizeof(float);
  launch("heads_backward", heads_backward_kernel, heads * kHeadSplits + 1, kHeadThreads, of_head,
         where,
         HeadsBackward{parameters, memory.partials, incoming.penalty, kept.directions, kept.units,
                       kept.second, blocks, rows, out, memory.by, memory.finished});
  const int64_t columns = ceil_div(width, kWarp), squares = ceil_div(width * width, kBackThreads);
  launch("rest_backward", rest_backward_kernel,
         columns + squares + ceil_div(latents * width, kBackThreads), kBackThreads, 0, where,
         RestBackward{parameters, kept.folded, kept.units, memory.by, out, columns, squares});
}

}  // namespace mam::cuda
