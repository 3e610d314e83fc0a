// The token path on the CPU: attention of the latents over tokens, importance and draw. See
// mam_kernels/ops/latent_attention/README.md.
//
// Tokens that are not valid are left out where tiles are made, so nothing of them is read.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/drawing.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

constexpr int64_t kMaxState =
    1 << 16;  // floats of output that a thread sums at a time, unless one block has more

void store_as(DType dtype, void* out, int64_t at, float value) {
  if (dtype == DType::float32) {
    static_cast<float*>(out)[at] = value;
  } else {
    static_cast<uint16_t*>(out)[at] =
        dtype == DType::float16 ? to_float16(value) : to_bfloat16(value);
  }
}

struct AttentionScratch {
  TileScratch tile;
  Buffer<float> largest, total, output;
};

}  // namespace

size_t attention_workspace(const Tokens&, const Tokens&) { return 0; }

void latent_attention(const Tokens& query, const Tokens& key, const Tokens& value,
                      const Flags& valid, float scale, void* out, float* logsumexp, void*,
                      const Launch& launch) {
  const int64_t block = kernels().block, heads = query.heads, width = query.width,
                pitch = padded(width);
  const Queries queries(query, nullptr, query.positions, scale);
  // An item: some blocks of the latents of a head and a row. Which others are computed beside it
  // changes no latent's result.
  const int64_t wanted = ceil_div(4 * std::max(launch.threads, 1),
                                  std::max<int64_t>(key.batch * heads, 1));  // items of a head
  const int64_t at_most = std::max<int64_t>(1, kMaxState / (pitch * block));
  const int64_t blocks = std::min(at_most, std::max<int64_t>(1, queries.blocks / wanted)),
                parts = ceil_div(queries.blocks, blocks);
  const int64_t items = key.batch * heads * parts;
  const int threads = threads_for(items, launch.threads);
  std::vector<AttentionScratch> scratch(static_cast<size_t>(threads));
  for (AttentionScratch& mine : scratch) {
    mine.tile.reset(pitch, value.data);
    mine.largest.reset(blocks * block);
    mine.total.reset(blocks * block);
    mine.output.reset(value.data ? blocks * block * pitch : 0);
  }
  parallel_for(items, threads, [&](int64_t item, int thread) {
    AttentionScratch& mine = scratch[static_cast<size_t>(thread)];
    TileScratch& tile = mine.tile;
    const int64_t first_block = item % parts * blocks, head = item / parts % heads,
                  row = item / parts / heads;
    const int64_t first = first_block * block,
                  latents = std::min(query.positions - first, blocks * block);
    const SoftmaxState state{mine.largest.get(), mine.total.get(), mine.output.get()};
    std::fill_n(state.largest, blocks * block, -std::numeric_limits<float>::infinity());
    std::fill_n(state.total, blocks * block, 0.0f);
    if (value.data) std::fill_n(state.output, blocks * block * pitch, 0.0f);
    for (int64_t from = 0, count;
         (count = next_tile(valid, row, key.positions, &from, tile.position)) > 0;) {
      kernels().gather(token_rows(key, row, head, tile.position, count), pitch, tile.key.get());
      if (value.data)
        kernels().gather(token_rows(value, row, head, tile.position, count), pitch,
                         tile.value.get());
      kernels().attend({queries.at(head, first_block, width), latents, width, tile.key.get(),
                        tile.value.get(), count, pitch, tile.scores.get()},
                       state);
    }
    for (int64_t n = 0; n < latents; ++n) {
      const int64_t to = (row * query.positions + first + n) * heads + head;
      const float total = state.total[n], normalizer = total == 0.0f ? 1.0f : 1.0f / total;
      logsumexp[to] = state.largest[n] + std::log(total);
      if (!value.data) continue;
      const float* const sums = state.output + n / block * pitch * block + n % block;
      for (int64_t c = 0; c < width; ++c)
        store_as(query.dtype, out, to * width + c, sums[c * block] * normalizer);
    }
  });
}

void attention_importance(const Tokens& query, const Tokens& key, const float* logsumexp,
                          const int64_t* latents, int64_t num_chosen, const Flags& valid,
                          float scale, float* importance, const Launch& launch) {
  const int64_t block = kernels().block, heads = query.heads, width = query.width,
                pitch = padded(width);
  require_indices(latents, num_chosen, query.positions);
  const Queries queries(query, latents, num_chosen, scale);
  const int64_t lanes = queries.blocks * block;
  constexpr int64_t kSpan = 4 * kTileTokens;  // positions that a thread takes at a time
  const int64_t spans = ceil_div(key.positions, kSpan), items = key.batch * spans;
  const int threads = threads_for(items, launch.threads);
  struct Scratch {
    TileScratch tile;
    Buffer<float> logsumexp;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  for (Scratch& mine : scratch) {
    mine.tile.reset(pitch, false);
    mine.logsumexp.reset(heads * lanes);
  }
  parallel_for(items, threads, [&](int64_t item, int thread) {
    Scratch& mine = scratch[static_cast<size_t>(thread)];
    TileScratch& tile = mine.tile;
    const int64_t row = item / spans, end = std::min(key.positions, (item % spans + 1) * kSpan);
    std::fill_n(mine.logsumexp.get(), heads * lanes, 0.0f);
    for (int64_t i = 0; i < num_chosen; ++i)
      for (int64_t h = 0; h < heads; ++h)
        mine.logsumexp[h * lanes + i] = logsumexp[(row * query.positions + latents[i]) * heads + h];
    int64_t from = item % spans * kSpan;
    float* const out = importance + row * key.positions;
    std::fill(out + from, out + end, 0.0f);
    for (int64_t count; (count = next_tile(valid, row, end, &from, tile.position)) > 0;) {
      float sums[kTileTokens] = {};
      for (int64_t head = 0; head < heads; ++head) {
        kernels().gather(token_rows(key, row, head, tile.position, count), pitch, tile.key.get());
        kernels().token_importance({queries.at(head, 0, width), num_chosen, width, tile.key.get(),
                                    nullptr, count, pitch, tile.scores.get()},
                                   mine.logsumexp.get() + head * lanes, sums);
      }
      for (int64_t i = 0; i < count; ++i) out[tile.position[i]] = sums[i];
    }
  });
}

void token_mask(const Tokens& query, const Tokens& key, const float* logsumexp,
                const int64_t* latents, int64_t num_chosen, const Flags& valid,
                const Flags& maskable, float scale, const int32_t* num_masked, const Draw& draw,
                const Weighting& weighting, uint8_t* mask, float* importance, void* workspace,
                const Launch& launch) {
  const Session session(
      threads_for(key.batch * ceil_div(key.positions, kTileTokens), launch.threads));
  attention_importance(query, key, logsumexp, latents, num_chosen, valid, scale, importance,
                       launch);
  const Values weights{importance, DType::float32, key.batch, key.positions, key.positions,
                       1,          nullptr,        nullptr,   false};
  select(weights, maskable, num_masked, draw, weighting, mask, workspace, launch);
}

}  // namespace cpu
}  // namespace mam
