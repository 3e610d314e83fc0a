// The masking step around the pass over the cells: slopes, directions and constant of the
// parameters before it, the penalty after it; step_backward.cu has the gradient. See
// mam_kernels/ops/value_attention/collapse.py for the equations. Three launches, four where the
// context is that of the visible positions; every sum has a fixed order.
#include "cuda/step.h"
#include "draw_latents.cuh"
#include "step.cuh"
#include "step_memory.cuh"

namespace mam::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kSplits = 16;  // blocks of a head, each with a part of its latents and elements

// What the projections leave for the pass over the cells and for the gradient.
struct Projected {
  float* slope;                        // (latents, heads)
  float2* affine;                      // (heads, Dz): direction, and part of the constant
  float *directions, *folded, *units;  // (heads, Dz) twice, (3, Dz)
  int64_t* chosen;                     // (num_chosen,), or null where the caller chose
  unsigned* finished;                  // blocks of finish_kernel that are done: set to 0
};

// What mask_ratio hides of each row, where the draw has a launch of its own; else no rows.
struct RowCounts {
  Flags maskable;
  int64_t rows, positions;
  double mask_ratio;
  int32_t* counts;
};

// A part of a head. With u = W_k w, g = W_v w and e = W_v b + b_v of it: slope = latents (u W_q) +
// u b_q over sqrt(d), direction = W_o g.
__device__ __forceinline__ void project_head(const Projection& from, const Projected& to, int head,
                                             int split, float* shared) {
  const int width = static_cast<int>(from.width), heads = static_cast<int>(from.heads),
            depth = width / heads, latents = static_cast<int>(from.num_latents);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float *const u = shared, *const g = u + depth, *const e = g + depth, *const folded = e + depth;
  const float* const key = from.in_weight + static_cast<int64_t>(width + head * depth) * width;
  const float* const value = key + static_cast<int64_t>(width) * width;
  // phase: units
#pragma unroll 1
  for (int i = warp; i < depth; i += kWarps) {  // trips: D / H / warps | 0
    float of_u = 0.0f, of_g = 0.0f, of_e = 0.0f;
#pragma unroll 4
    for (int c = lane; c < width; c += kWarp) {  // trips: D / 128 | 0
      const float w = from.token_weight[c], v = value[static_cast<int64_t>(i) * width + c];
      of_u = fmaf(key[static_cast<int64_t>(i) * width + c], w, of_u);
      of_g = fmaf(v, w, of_g);
      of_e = fmaf(v, from.token_bias[c], of_e);
    }
    of_u = sum_of_warp(of_u);
    of_g = sum_of_warp(of_g);
    of_e = sum_of_warp(of_e) + from.in_bias[2 * width + head * depth + i];
    if (lane == 0) {
      u[i] = of_u;
      g[i] = of_g;
      e[i] = of_e;
      if (split == 0) {
        to.units[head * depth + i] = of_u;
        to.units[width + head * depth + i] = of_g;
        to.units[2 * width + head * depth + i] = of_e;
      }
    }
  }
  __syncthreads();
  // phase: folded
  const float* const query = from.in_weight + static_cast<int64_t>(head) * depth * width;
#pragma unroll 1
  for (int c = threadIdx.x; c < width; c += kThreads) {  // trips: D / threads | 0
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < depth; ++i)  // trips: D / H / 8 | 0
      sum = fmaf(u[i], query[static_cast<int64_t>(i) * width + c], sum);
    folded[c] = sum;
    if (split == 0) to.folded[head * width + c] = sum;
  }
  __syncthreads();
  // phase: slopes
  float bias = 0.0f;
#pragma unroll 1
  for (int i = lane; i < depth; i += kWarp)  // trips: D / H / 32
    bias = fmaf(u[i], from.in_bias[head * depth + i], bias);
  bias = sum_of_warp(bias);
  const float scale = rsqrtf(static_cast<float>(depth));
#pragma unroll 1
  for (int n = split * kWarps + warp; n < latents;
       n += kSplits * kWarps) {  // trips: N / 16 / warps
    float sum = 0.0f;
#pragma unroll 4
    for (int c = lane; c < width; c += kWarp)  // trips: D / 128 | 0
      sum = fmaf(from.latents[static_cast<int64_t>(n) * width + c], folded[c], sum);
    sum = sum_of_warp(sum);
    if (lane == 0) to.slope[n * heads + head] = scale * (sum + bias);
  }
  // phase: directions
#pragma unroll 1
  for (int c = split * kWarps + warp; c < width; c += kSplits * kWarps) {  // trips: D / 16 / warps
    float direction = 0.0f, constant = 0.0f;
#pragma unroll 1
    for (int i = lane; i < depth; i += kWarp) {  // trips: D / H / 32
      const float w = from.out_weight[static_cast<int64_t>(c) * width + head * depth + i];
      direction = fmaf(w, g[i], direction);
      constant = fmaf(w, e[i], constant);
    }
    direction = sum_of_warp(direction);
    constant = sum_of_warp(constant);
    if (lane == 0) {
      to.directions[head * width + c] = direction;
      to.affine[head * width + c] = make_float2(direction, constant);
    }
  }
}

// One block a head and split, one that draws the latents, and one a row that is counted.
__global__ void __launch_bounds__(kThreads)
    project_kernel(Projection from, Projected to, int64_t num_chosen, Draw draw, RowCounts of) {
  MAM_DYNAMIC_SHARED(float, shared);
  const int64_t parts = from.heads * kSplits, row = blockIdx.x - parts - 1;
  if (row == -1) {  // share: 1 / blocks
    if (threadIdx.x == 0) *to.finished = 0;
    // phase: draw of the latents
    if (to.chosen != nullptr) choose_latents(from.num_latents, num_chosen, draw, to.chosen);
    return;
  }
  if (row >= 0) {  // share: 1 - (16 * H + 1) / blocks
    // phase: count
    const int64_t maskable = count_maskable(flag_row(of.maskable, row), of.positions);
    if (threadIdx.x == 0) of.counts[row] = part_to_hide(of.mask_ratio, maskable);
    return;
  }
  // share: 16 * H / blocks
  project_head(from, to, blockIdx.x / kSplits, blockIdx.x % kSplits, shared);
}

// What the rows leave, and what is made of it.
struct Finish {
  const float *second, *squares, *directions;  // (rows, heads, heads), (rows,), (heads, Dz)
  const float2* affine;
  int64_t rows, latents, heads, width;
  float *total, *gram, *constant, *penalty;  // (heads, heads) twice, (Dz,), one
  unsigned* finished;
};

// One block a pair of heads: the products of their means over all cells, and those of their
// directions. The last one to be done sums up the penalty.
__global__ void __launch_bounds__(kThreads) finish_kernel(Finish of) {
  __shared__ bool last;
  const int pairs = static_cast<int>(of.heads * of.heads), pair = blockIdx.x;
  const int width = static_cast<int>(of.width), heads = static_cast<int>(of.heads);
  const float* const left = of.directions + pair / heads * width;
  const float* const right = of.directions + pair % heads * width;
  double second = 0.0;
  float gram = 0.0f;
#pragma unroll 4
  for (int64_t row = threadIdx.x; row < of.rows; row += kThreads)  // trips: B / threads / 4 | 0
    second += of.second[row * pairs + pair];
#pragma unroll 2
  for (int c = threadIdx.x; c < width; c += kThreads)  // trips: D / threads / 2 | 0
    gram = fmaf(left[c], right[c], gram);
  second = block_reduce_of<kWarps>(second, Sum());
  gram = block_reduce_of<kWarps>(gram, Sum());
  if (pair == 0)  // share: 1 / blocks
#pragma unroll 1
    for (int c = threadIdx.x; c < width; c += kThreads) {  // trips: D / threads
      float constant = 0.0f;
#pragma unroll 4
      for (int h = 0; h < heads; ++h) constant += of.affine[h * width + c].y;  // trips: H / 4 | 0
      of.constant[c] = constant;
    }
  if (threadIdx.x == 0) {
    of.total[pair] = static_cast<float>(second);
    of.gram[pair] = gram;
    __threadfence();
    last = atomicAdd(of.finished, 1u) + 1 == gridDim.x;
  }
  __syncthreads();
  if (!last) return;
  // phase: penalty
  // share: 1 / blocks
  {
    __threadfence();
    double squares = 0.0, product = 0.0;
    for (int64_t row = threadIdx.x; row < of.rows; row += kThreads)  // trips: B / threads | 0
      squares += of.squares[row];
    for (int i = threadIdx.x; i < pairs; i += kThreads)  // trips: 1 | 0
      product += static_cast<double>(__ldcg(of.total + i)) * __ldcg(of.gram + i);
    const double whole =
        block_reduce_of<kWarps>(product + 2.0 * static_cast<double>(of.latents) * squares, Sum());
    if (threadIdx.x == 0)
      *of.penalty = static_cast<float>(whole / static_cast<double>(of.rows > 0 ? of.rows : 1));
  }
}

struct StepMemory {
  Projected to;
  float2* normalizer;
  int32_t* counts;
  float *second, *squares;
  size_t bytes;

  StepMemory(void* memory, int64_t rows, int64_t latents, int64_t heads, int64_t width,
             int64_t num_chosen)
      : to{} {
    Pieces pieces{static_cast<char*>(memory)};
    to.slope = pieces.take<float>(latents * heads);
    to.affine = pieces.take<float2>(heads * width);
    to.chosen = pieces.take<int64_t>(num_chosen);
    to.finished = pieces.take<unsigned>(1);
    second = pieces.take<float>(rows * heads * heads);
    squares = pieces.take<float>(rows);
    normalizer = pieces.take<float2>(rows * latents * heads);
    counts = pieces.take<int32_t>(rows);
    bytes = pieces.bytes;
  }
};

}  // namespace

int64_t state_size(int64_t rows, int64_t latents, int64_t heads, int64_t width) {
  return State(nullptr, rows, latents, heads, width).end - static_cast<float*>(nullptr);
}

size_t step_workspace(int64_t rows, int64_t latents, int64_t heads, int64_t width,
                      int64_t num_chosen) {
  return StepMemory(nullptr, rows, latents, heads, width, num_chosen).bytes;
}

void masking_step(const Step& from, const StepOutput& out, void* workspace, const Launch& where) {
  const Projection& parameters = from.parameters;
  const int64_t rows = from.values.rows, latents = parameters.num_latents, heads = parameters.heads,
                width = parameters.width;
  StepMemory memory(workspace, rows, latents, heads, width, from.num_chosen);
  const State state(out.state, rows, latents, heads, width);
  memory.to.directions = state.directions;
  memory.to.folded = state.folded;
  memory.to.units = state.units;
  const int64_t* const chosen = from.chosen == nullptr ? memory.to.chosen : from.chosen;
  if (from.chosen != nullptr) memory.to.chosen = nullptr;
  Draw of_latents = from.draw;
  of_latents.stream = kStreamLatents;
  of_latents.sample_ids = nullptr;
  const size_t shared = (3 * width / heads + width) * sizeof(float);
  RowCounts counted{from.maskable, 0, from.values.positions, from.mask_ratio, memory.counts};
  if (from.num_masked == nullptr && is_sharp(from.weighting)) counted.rows = rows;
  launch("project", project_kernel, heads * kSplits + 1 + counted.rows, kThreads, shared, where,
         parameters, memory.to, from.num_chosen, of_latents, counted);

  ValueStep step{};
  step.values = from.values;
  step.valid = from.valid;
  step.maskable = from.maskable;
  step.slope = memory.to.slope;
  step.num_slopes = latents * heads;
  step.num_latents = latents;
  step.heads = heads;
  step.all_slopes = !from.visible;
  step.out = {nullptr, state.mean, state.variance};
  step.latents = chosen;
  step.num_chosen = from.num_chosen;
  step.num_masked = from.num_masked;
  step.mask_ratio = from.mask_ratio;
  step.draw = from.draw;
  step.weighting = from.weighting;
  step.mask = out.mask;
  step.importance = out.importance;
  step.normalizer = memory.normalizer;
  step.counts = memory.counts;
  const ContextOutput context{memory.to.affine, from.out_bias, width,          out.context,
                              state.average,    memory.second, memory.squares, state.occupied};
  if (!from.visible) step.context = context;
  launch_value_step(step, where);
  if (from.visible) {
    ValueStep visible{};
    visible.values = from.values;
    visible.valid = from.valid;
    visible.hidden = out.mask;
    visible.slope = step.slope;
    visible.num_slopes = step.num_slopes;
    visible.num_latents = latents;
    visible.heads = heads;
    visible.all_slopes = true;
    visible.out = step.out;
    visible.context = context;
    launch_value_step(visible, where);
  }
  launch("finish", finish_kernel, heads * heads, kThreads, 0, where,
         Finish{memory.second, memory.squares, state.directions, memory.to.affine, rows, latents,
                heads, width, state.second, state.gram, state.constant, out.penalty,
                memory.to.finished});
}

}  // namespace mam::cuda
