// Latents and tokens of one head as the kernels of attention take them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workers.h"

namespace mam {
namespace cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t padded(int64_t width) { return ceil_div(width, kTokenPadding) * kTokenPadding; }

// Latents of every head as the kernels take them: (heads, blocks, width, block), scaled. `chosen`:
// which; null: all, `count` of them.
struct Queries {
  int64_t blocks;
  Buffer<float> scaled;

  Queries(const Tokens& query, const int64_t* chosen, int64_t count, float scale)
      : blocks(ceil_div(count, kernels().block)),
        scaled(query.heads * blocks * query.width * kernels().block) {
    const int64_t block = kernels().block, width = query.width;
    std::fill_n(scaled.get(), query.heads * blocks * width * block, 0.0f);
    Buffer<float> row(width);
    for (int64_t n = 0; n < count; ++n)
      for (int64_t h = 0; h < query.heads; ++h) {
        const int64_t from =
            (chosen ? chosen[n] : n) * query.stride_position + h * query.stride_head;
        const float* latent = floats(query.data, query.dtype, from, 1, width, row.get());
        float* const to = scaled.get() + (h * blocks + n / block) * width * block + n % block;
        for (int64_t c = 0; c < width; ++c) to[c * block] = scale * latent[c];
      }
  }

  const float* at(int64_t head, int64_t block, int64_t width) const {
    return scaled.get() + (head * blocks + block) * width * kernels().block;
  }
};

// One thread's memory: a tile, its scores, and which tokens it holds.
struct TileScratch {
  Buffer<float> key, value, scores;
  int64_t position[kTileTokens];

  void reset(int64_t pitch, bool with_values) {
    key.reset(kTileTokens * pitch);
    value.reset(with_values ? kTileTokens * pitch : 0);
    scores.reset(kTileTokens * kernels().block);
  }
};

// The next valid positions of a row; `from` moves on. Returns how many, 0 at `end`.
inline int64_t next_tile(const Flags& valid, int64_t row, int64_t end, int64_t* from,
                         int64_t* position) {
  const uint8_t* const flags = valid.data ? valid.data + row * valid.stride_row : nullptr;
  int64_t count = 0;
  for (; *from < end && count < kTileTokens; ++*from) {
    position[count] = *from;
    count += !flags || flags[*from * valid.stride_position];
  }
  return count;
}

inline TokenRows token_rows(const Tokens& tokens, int64_t row, int64_t head,
                            const int64_t* position, int64_t count) {
  const int64_t bytes = tokens.dtype == DType::float32 ? 4 : 2;
  const char* const data = static_cast<const char*>(tokens.data) +
                           (row * tokens.stride_batch + head * tokens.stride_head) * bytes;
  return {data, tokens.dtype, tokens.stride_position, tokens.width, position, count};
}

}  // namespace cpu
}  // namespace mam
