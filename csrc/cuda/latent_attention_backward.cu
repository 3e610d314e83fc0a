// Gradients of latent_attention. The weights A = exp(scale q.k - logsumexp) are computed again, and
// with dP = dO V^T and delta = sum_d dO O - dlogsumexp: dV = A^T dO, dS = A (dP - delta), dK =
// scale dS^T Q, dQ = scale dS K summed over the cells.
//
// No sum depends on the order in which blocks run: tokens_kernel owns 64 tokens of a cell and
// visits all latents; latents_kernel owns 64 latents and a fixed part of all the tokens of all
// cells, and reduce_kernel adds the parts in their order.
#include <algorithm>

#include "tile.cuh"

namespace mam::cuda {

namespace {

struct Gradient {
  Tokens query, key, value, grad_out;  // grad_out: (batch, latents, heads, width)
  Flags valid;
  const float* logsumexp;  // (batch, latents, heads)
  const float* delta;      // likewise
  float scale;
};

struct Grid {
  int64_t tiles, width_tiles, parts, tiles_per_part;
};

// One warp for each latent, head and cell.
__global__ void __launch_bounds__(kTileThreads)
    delta_kernel(const void* grad_out, const void* out, DType dtype, const float* grad_logsumexp,
                 int64_t rows, int64_t width, float* delta) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x) / kWarp;
  if (row >= rows) return;
  float sum = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp)  // trips: 0 | ceil(Dz / H / 32) | 0
    sum = fmaf(load(grad_out, dtype, row * width + c), load(out, dtype, row * width + c), sum);
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane == 0) delta[row] = sum - (grad_logsumexp == nullptr ? 0.0f : grad_logsumexp[row]);
}

// The place of 64 latents and 64 tokens of one head and cell.
struct Place {
  int64_t batch, head, latent, token;
};

__device__ Rows rows_at(const Gradient& g, const Tokens& x, const Place& at) {
  return rows_of(x, at.batch, at.head, flag_row(g.valid, at.batch));
}

__device__ Rows grad_out_rows(const Gradient& g, const Place& at) {
  return rows_of(g.grad_out, at.batch, at.head, {nullptr, 0});
}

__device__ int64_t statistic(const Gradient& g, const Place& at, int i) {
  return (at.batch * g.query.positions + at.latent + tile_row() + i) * g.query.heads + at.head;
}

// A = exp(scale q.k - logsumexp), 0 where there is no latent or no token.
__device__ void attention_weights(Factors& factors, const Gradient& g, const Place& at,
                                  float (&weights)[kTile][kPitch]) {
  const Rows keys = rows_at(g, g.key, at);
  Scores scores;
  dot_products(factors, latent_rows(g.query, at.head), at.latent, keys, at.token, scores);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const bool is_latent = at.latent + tile_row() + i < g.query.positions;
    const float shift = is_latent ? shift_of(g.logsumexp[statistic(g, at, i)]) : INFINITY;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const bool exists = is_latent && keys.exists(at.token + tile_column() + j);
      scores[i][j] = exists ? __expf(fmaf(scores[i][j], g.scale, -shift)) : 0.0f;
    }
  }
  put_scores(weights, scores);
}

// Replaces A by dS = A (dO V^T - delta). A stays in shared memory meanwhile, which spares
// registers.
__device__ void score_gradients(Factors& factors, const Gradient& g, const Place& at,
                                float (&weights)[kTile][kPitch]) {
  Scores gradients, attention;
  dot_products(factors, grad_out_rows(g, at), at.latent, rows_at(g, g.value, at), at.token,
               gradients);
  get_scores(weights, attention);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const bool is_latent = at.latent + tile_row() + i < g.query.positions;
    const float delta = is_latent ? g.delta[statistic(g, at, i)] : 0.0f;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
      gradients[i][j] = attention[i][j] * (gradients[i][j] - delta);
  }
  put_scores(weights, gradients);
}

template <int Columns>
__device__ void write_tile(const float (&acc)[kPerThread][Columns / kSide], float factor,
                           int64_t row, int64_t count, int64_t row_stride, int64_t column,
                           int64_t width, float* out) {
  constexpr int kColumns = Columns / kSide;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t r = row + tile_row() + i;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t c = column + threadIdx.x % kSide * kColumns + j;
      if (r < count && c < width) out[r * row_stride + c] = factor * acc[i][j];
    }
  }
}

template <int Columns>
__global__ void __launch_bounds__(kTileThreads, 2)
    tokens_kernel(Gradient g, Grid grid, float* dk, float* dv) {
  __shared__ __align__(16) Factors factors;
  __shared__ __align__(16) float scores[kTile][kPitch];
  int64_t index = blockIdx.x;
  const int64_t column = index % grid.width_tiles * Columns;
  index /= grid.width_tiles;
  const int64_t token = index % grid.tiles * kTile;
  index /= grid.tiles;
  const int64_t head = index % g.key.heads, batch = index / g.key.heads;

  float grad_key[kPerThread][Columns / kSide] = {}, grad_value[kPerThread][Columns / kSide] = {};
  for (int64_t latent = 0; latent < g.query.positions; latent += kTile) {  // trips: ceil(N / 64)
    const Place at{batch, head, latent, token};
    attention_weights(factors, g, at, scores);
    load_tile<Columns>(factors.tile<Columns>(), grad_out_rows(g, at), latent, column);
    __syncthreads();
    multiply_add_transposed<Columns>(scores, factors.tile<Columns>(), grad_value);
    score_gradients(factors, g, at, scores);
    load_tile<Columns>(factors.tile<Columns>(), latent_rows(g.query, head), latent, column);
    __syncthreads();
    multiply_add_transposed<Columns>(scores, factors.tile<Columns>(), grad_key);
  }
  const int64_t width = g.key.width, row_stride = g.key.heads * width,
                first = (batch * g.key.positions * g.key.heads + head) * width;
  write_tile<Columns>(grad_key, g.scale, token, g.key.positions, row_stride, column, width,
                      dk + first);
  write_tile<Columns>(grad_value, 1.0f, token, g.key.positions, row_stride, column, width,
                      dv + first);
}

// parts: (parts, latents, heads, width).
template <int Columns>
__global__ void __launch_bounds__(kTileThreads, 2)
    latents_kernel(Gradient g, Grid grid, float* parts) {
  __shared__ __align__(16) Factors factors;
  __shared__ __align__(16) float scores[kTile][kPitch];
  int64_t index = blockIdx.x;
  const int64_t part = index % grid.parts;
  index /= grid.parts;
  const int64_t column = index % grid.width_tiles * Columns;
  index /= grid.width_tiles;
  const int64_t head = index % g.key.heads, latent = index / g.key.heads * kTile;

  float grad_query[kPerThread][Columns / kSide] = {};
  const int64_t last = min((part + 1) * grid.tiles_per_part, g.key.batch * grid.tiles);
  for (int64_t tile = part * grid.tiles_per_part; tile < last; ++tile) {  // trips: tiles
    const Place at{tile / grid.tiles, head, latent, tile % grid.tiles * kTile};
    attention_weights(factors, g, at, scores);
    score_gradients(factors, g, at, scores);
    load_tile<Columns>(factors.tile<Columns>(), rows_at(g, g.key, at), at.token, column);
    __syncthreads();
    // where: DEPTH = 64
    multiply_add<kTile, Columns>(scores, factors.tile<Columns>(), grad_query);
  }
  const int64_t width = g.key.width, row_stride = g.key.heads * width;
  float* out = parts + part * g.query.positions * row_stride + head * width;
  write_tile<Columns>(grad_query, g.scale, latent, g.query.positions, row_stride, column, width,
                      out);
}

__global__ void __launch_bounds__(kTileThreads)
    reduce_kernel(const float* parts, int64_t count, int64_t size, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int64_t part = 0; part < count; ++part)  // trips: parts
    sum += parts[part * size + i];
  out[i] = sum;
}

int64_t latent_blocks(const Tokens& query) {
  return ceil_div(query.positions, kTile) * query.heads *
         ceil_div(query.width, result_columns(query.width));
}

Grid grid_of(const Tokens& query, const Tokens& key) {
  Grid grid{};
  grid.tiles = ceil_div(key.positions, kTile);
  grid.width_tiles = ceil_div(query.width, result_columns(query.width));
  const int64_t all = key.batch * grid.tiles;
  const int64_t wanted = std::max<int64_t>(1, std::min(all, kBlocksWanted / latent_blocks(query)));
  grid.tiles_per_part = ceil_div(all, wanted);
  grid.parts = ceil_div(all, grid.tiles_per_part);
  return grid;
}

Tokens like_output(const void* data, const Tokens& query, int64_t batch) {
  const int64_t row = query.heads * query.width;
  return {data,        query.dtype,           batch, query.positions, query.heads,
          query.width, query.positions * row, row,   query.width};
}

}  // namespace

size_t attention_backward_workspace(const Tokens& query, const Tokens& key) {
  const int64_t delta = key.batch * query.positions * query.heads;
  return (delta + grid_of(query, key).parts * query.positions * query.heads * query.width) *
         sizeof(float);
}

void latent_attention_backward(const void* grad_out, const float* grad_logsumexp,
                               const Tokens& query, const Tokens& key, const Tokens& value,
                               const Flags& valid, const void* out, const float* logsumexp,
                               float scale, float* dq, float* dk, float* dv, void* workspace,
                               const Launch& where) {
  const Grid grid = grid_of(query, key);
  const int64_t rows = key.batch * query.positions * query.heads,
                size = query.positions * query.heads * query.width;
  float* delta = static_cast<float*>(workspace);
  float* parts = delta + rows;
  launch("attention_delta", delta_kernel, ceil_div(rows * kWarp, kTileThreads), kTileThreads, 0,
         where, grad_out, out, query.dtype, grad_logsumexp, rows, query.width, delta);

  const Gradient g{query, key,       value, like_output(grad_out, query, key.batch),
                   valid, logsumexp, delta, scale};
  const bool narrow = is_narrow(query.width);
  const auto for_tokens = narrow ? tokens_kernel<kSlice> : tokens_kernel<kTile>;
  launch("attention_backward_tokens", for_tokens,
         key.batch * key.heads * grid.tiles * grid.width_tiles, kTileThreads, 0, where, g, grid, dk,
         dv);
  const auto for_latents = narrow ? latents_kernel<kSlice> : latents_kernel<kTile>;
  launch("attention_backward_latents", for_latents, latent_blocks(query) * grid.parts, kTileThreads,
         0, where, g, grid, parts);
  launch("attention_backward_reduce", reduce_kernel, ceil_div(size, kTileThreads), kTileThreads, 0,
         where, parts, grid.parts, size, dq);
}

}  // namespace mam::cuda
