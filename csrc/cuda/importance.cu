// Importance of the tokens: the attention that the chosen latents pay to each, summed over them and
// the heads. One block for 64 tokens of a cell, which visits every head and chosen latent.
// token_mask draws from it.
#include "tile.cuh"

namespace mam::cuda {

namespace {

__global__ void __launch_bounds__(kTileThreads, 2)
    token_importance_kernel(Tokens query, Tokens key, const float* logsumexp,
                            const int64_t* latents, int64_t num_chosen, Flags valid, float scale,
                            int64_t tiles, float* importance) {
  __shared__ __align__(16) Factors factors;
  __shared__ float partial[kSide][kTile];
  const int64_t batch = blockIdx.x / tiles, token = blockIdx.x % tiles * kTile;
  const FlagRow exists = flag_row(valid, batch);
  float sums[kPerThread] = {};
  for (int64_t head = 0; head < query.heads; ++head) {  // trips: H
    Rows chosen = latent_rows(query, head);
    chosen.index = latents;
    chosen.count = num_chosen;
    const Rows keys = rows_of(key, batch, head, exists);
    for (int64_t first = 0; first < num_chosen; first += kTile) {  // trips: ceil(R / 64)
      Scores scores;
      dot_products(factors, chosen, first, keys, token, scores);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int64_t r = first + tile_row() + i;
        if (r >= num_chosen) continue;
        const float shift =
            shift_of(logsumexp[(batch * query.positions + latents[r]) * query.heads + head]);
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sums[j] += __expf(fmaf(scores[i][j], scale, -shift));
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kPerThread; ++j) partial[threadIdx.x / kSide][tile_column() + j] = sums[j];
  __syncthreads();
  const int64_t l = token + threadIdx.x;
  if (threadIdx.x >= kTile || l >= key.positions) return;
  float sum = 0.0f;
  for (int side = 0; side < kSide; ++side)  // trips: 16
    sum += partial[side][threadIdx.x];
  importance[batch * key.positions + l] = exists[l] ? sum : 0.0f;
}

}  // namespace

void attention_importance(const Tokens& query, const Tokens& key, const float* logsumexp,
                          const int64_t* latents, int64_t num_chosen, const Flags& valid,
                          float scale, float* importance, const Launch& where) {
  const int64_t tiles = ceil_div(key.positions, kTile);
  launch("attention_importance", token_importance_kernel, key.batch * tiles, kTileThreads, 0, where,
         query, key, logsumexp, latents, num_chosen, valid, scale, tiles, importance);
}

void token_mask(const Tokens& query, const Tokens& key, const float* logsumexp,
                const int64_t* latents, int64_t num_chosen, const Flags& valid,
                const Flags& maskable, float scale, const int32_t* num_masked, const Draw& draw,
                const Weighting& weighting, uint8_t* mask, float* importance, void* workspace,
                const Launch& where) {
  attention_importance(query, key, logsumexp, latents, num_chosen, valid, scale, importance, where);
  select(contiguous(importance, key.batch, key.positions), maskable, num_masked, draw, weighting,
         mask, workspace, where);
}

}  // namespace mam::cuda
