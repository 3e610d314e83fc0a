// Attention of the latents over the tokens of each cell, and the log-sum-exp of the scores. See
// mam_kernels/ops/latent_attention/README.md.
//
// attention_kernel: one block for 64 latents, a head, a cell, and a part of the tokens, which it
// visits once with an online softmax. merge_kernel: joins the parts, weighted by their
// log-sum-exps; parts are made only where there are too few blocks otherwise.
#include <algorithm>

#include "tile.cuh"

namespace mam::cuda {

namespace {

// How the work is divided: index = ((cell * heads + head) * latent tiles + latent tile) * width
// tiles + width tile) * parts + part.
struct Grid {
  int64_t heads, latent_tiles, width_tiles, parts, tiles_per_part;
  int64_t blocks;
};

Grid grid_of(const Tokens& query, const Tokens& key, bool with_output) {
  Grid grid{};
  grid.heads = query.heads;
  grid.latent_tiles = ceil_div(query.positions, kTile);
  grid.width_tiles = with_output ? ceil_div(query.width, result_columns(query.width)) : 1;
  const int64_t whole = key.batch * grid.heads * grid.latent_tiles * grid.width_tiles,
                tiles = ceil_div(key.positions, kTile);
  const int64_t wanted = std::max<int64_t>(1, std::min(tiles, kBlocksWanted / whole));
  grid.tiles_per_part = ceil_div(tiles, wanted);
  grid.parts = ceil_div(tiles, grid.tiles_per_part);
  grid.blocks = whole * grid.parts;
  return grid;
}

// Where a block writes: the caller's tensors, or those of its part.
struct Target {
  void* out;
  DType dtype;
  float* logsumexp;
  int64_t part_stride_out, part_stride_logsumexp;
};

// The state of the softmax of a thread's four latents.
struct OnlineSoftmax {
  float largest[kPerThread], sum[kPerThread];

  __device__ OnlineSoftmax() {
    for (int i = 0; i < kPerThread; ++i) {
      largest[i] = -INFINITY;
      sum[i] = 0.0f;
    }
  }

  // Turns scores into weights about the new maximum; returns by how much what was summed before
  // shrinks.
  __device__ float take(int i, float (&scores)[kPerThread]) {
    const float in_tile =
        reduce_row(fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3])), Max());
    const float next = fmaxf(largest[i], in_tile);
    // As long as no token was met, any finite base will do. Not a reason to return: the sum below
    // exchanges values with every lane of the warp, which holds two rows.
    const float base = next == -INFINITY ? 0.0f : next;
    const float shrink = __expf(largest[i] - base);
    float added = 0.0f;
    for (float& score : scores) added += score = __expf(score - base);
    largest[i] = next;
    sum[i] = sum[i] * shrink + reduce_row(added, Sum());
    return shrink;
  }

  __device__ float logsumexp(int i) const {
    return sum[i] > 0.0f ? largest[i] + logf(sum[i]) : -INFINITY;
  }
};

__device__ void scale_and_hide(Scores& scores, float scale, const Rows& tokens, int64_t first) {
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const bool exists = tokens.exists(first + tile_column() + j);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) scores[i][j] = exists ? scores[i][j] * scale : -INFINITY;
  }
}

template <int Columns>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_kernel(Tokens query, Tokens key, Tokens value, Flags valid, float scale, Grid grid,
                     Target target) {
  __shared__ __align__(16) Factors factors;
  __shared__ __align__(16) float weights[kTile][kPitch];
  constexpr int kColumns = Columns / kSide;
  int64_t index = blockIdx.x;
  const int64_t part = index % grid.parts;
  index /= grid.parts;
  const int64_t column = index % grid.width_tiles * Columns;
  index /= grid.width_tiles;
  const int64_t latent = index % grid.latent_tiles * kTile;
  index /= grid.latent_tiles;
  const int64_t head = index % grid.heads, batch = index / grid.heads;

  const FlagRow exists = flag_row(valid, batch);
  const Rows latents = latent_rows(query, head), keys = rows_of(key, batch, head, exists),
             tokens = rows_of(value, batch, head, exists);
  const int64_t first = part * grid.tiles_per_part * kTile,
                last = min(first + grid.tiles_per_part * kTile, key.positions);
  OnlineSoftmax softmax;
  float out[kPerThread][kColumns] = {};
  for (int64_t token = first; token < last; token += kTile) {  // trips: ceil(L / 64)
    Scores scores;
    dot_products(factors, latents, latent, keys, token, scores);
    scale_and_hide(scores, scale, keys, token);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const float shrink = softmax.take(i, scores[i]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) out[i][j] *= shrink;
    }
    if (target.out == nullptr) continue;
    put_scores(weights, scores);
    load_tile<Columns>(factors.tile<Columns>(), tokens, token, column);
    __syncthreads();
    multiply_add<kTile, Columns>(weights, factors.tile<Columns>(), out);  // where: DEPTH = 64
  }

#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t n = latent + tile_row() + i;
    if (n >= query.positions) continue;
    const int64_t where = (batch * query.positions + n) * query.heads + head;
    if (column == 0 && threadIdx.x % kSide == 0)
      target.logsumexp[part * target.part_stride_logsumexp + where] = softmax.logsumexp(i);
    if (target.out == nullptr) continue;
    const float normalizer = softmax.sum[i] > 0.0f ? 1.0f / softmax.sum[i] : 0.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t c = column + threadIdx.x % kSide * kColumns + j;
      const int64_t to = part * target.part_stride_out + where * query.width + c;
      if (c < query.width) store(target.out, target.dtype, to, out[i][j] * normalizer);
    }
  }
}

// One warp for each latent, head and cell.
__global__ void __launch_bounds__(kTileThreads)
    merge_kernel(const float* part_out, const float* part_logsumexp, int64_t parts, int64_t rows,
                 int64_t width, Target target) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x) / kWarp;
  if (row >= rows) return;
  float largest = -INFINITY, sum = 0.0f;
  for (int64_t part = 0; part < parts; ++part)
    largest = fmaxf(largest, part_logsumexp[part * rows + row]);
  const float shift = largest == -INFINITY ? 0.0f : largest;
  for (int64_t part = 0; part < parts; ++part)
    sum += expf(part_logsumexp[part * rows + row] - shift);
  if (lane == 0) target.logsumexp[row] = largest == -INFINITY ? -INFINITY : largest + logf(sum);
  if (target.out == nullptr) return;
  for (int64_t c = lane; c < width; c += kWarp) {
    float total = 0.0f;
    for (int64_t part = 0; part < parts; ++part) {
      total += expf(part_logsumexp[part * rows + row] - shift) *
               part_out[(part * rows + row) * width + c];
    }
    store(target.out, target.dtype, row * width + c, sum > 0.0f ? total / sum : 0.0f);
  }
}

size_t part_floats(const Tokens& query, const Tokens& key, bool with_output) {
  const Grid grid = grid_of(query, key, with_output);
  if (grid.parts == 1) return 0;
  return grid.parts * key.batch * query.positions * query.heads * (query.width * with_output + 1);
}

}  // namespace

size_t attention_workspace(const Tokens& query, const Tokens& key) {
  const size_t parts =
      std::max(part_floats(query, key, true), part_floats(query, key, false)) * sizeof(float);
  return std::max(parts, select_workspace(key.batch, key.positions));
}

void latent_attention(const Tokens& query, const Tokens& key, const Tokens& value,
                      const Flags& valid, float scale, void* out, float* logsumexp, void* workspace,
                      const Launch& where) {
  const Grid grid = grid_of(query, key, value.data != nullptr);
  const int64_t rows = key.batch * query.positions * query.heads;
  const Target whole{value.data == nullptr ? nullptr : out, query.dtype, logsumexp, 0, 0};
  Target target = whole;
  float* part_logsumexp = static_cast<float*>(workspace);
  float* part_out = part_logsumexp + grid.parts * rows;
  if (grid.parts > 1)
    target = {whole.out == nullptr ? nullptr : part_out, DType::float32, part_logsumexp,
              rows * query.width, rows};

  const auto kernel = is_narrow(query.width) ? attention_kernel<kSlice> : attention_kernel<kTile>;
  launch("latent_attention", kernel, grid.blocks, kTileThreads, 0, where, query, key, value, valid,
         scale, grid, target);
  if (grid.parts == 1) return;
  launch("latent_attention_merge", merge_kernel, ceil_div(rows * kWarp, kTileThreads), kTileThreads,
         0, where, part_out, part_logsumexp, grid.parts, rows, query.width, whole);
}

}  // namespace mam::cuda
