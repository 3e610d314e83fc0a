// Softmax attention of the latents of one head over a tile of tokens. Latents lie along the lanes,
// so that maximum, sum and exponentials of a softmax are whole vectors, and tokens enter as single
// numbers that all lanes share.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

constexpr int kLatents = 2 * kFloats;  // in a block
#if MAM_VECTOR_BYTES == 64
constexpr int kRows = 8;  // times two vectors of latents: the sums that are kept in registers
#else
constexpr int kRows = 4;
#endif
static_assert(kTokenPadding % kRows == 0 && kTokenPadding % kFloats == 0,
              "tiles are read in whole rows and vectors");

// `before` where either is NaN: exponentials pass that on.
MAM_INLINE Float larger(Float score, Float before) { return score > before ? score : before; }

template <DType Type>
MAM_INLINE Float widened(const uint16_t* from) {
  const Word word =
      __builtin_convertvector((load<VectorOf<uint16_t, MAM_VECTOR_BYTES / 2>::type>(from)), Word);
  if (Type == DType::bfloat16) return bits<Float>(word << 16);
  const Word sign = (word & 0x8000u) << 16, magnitude = (word & 0x7FFFu) << 13;
  // the exponent's bias by a product, which also makes denormals normal
  const Word finite = bits<Word>(bits<Float>(magnitude) * 0x1p112f);
  return bits<Float>(sign | (magnitude >= 0x7C00u << 13 ? magnitude | 0x7F800000u : finite));
}

template <typename T, typename Widen>
MAM_INLINE void gather_as(const TokenRows& rows, int64_t pitch, float* tile, const Widen& widen) {
  for (int64_t i = 0; i < rows.count; ++i, tile += pitch) {
    const T* from = static_cast<const T*>(rows.data) + rows.position[i] * rows.stride;
    int64_t c = 0;
    for (; c + kFloats <= rows.width; c += kFloats) store(tile + c, widen(from + c));
    if (c < rows.width) {
      T rest[kFloats] = {};
      for (int64_t j = c; j < rows.width; ++j) rest[j - c] = from[j];
      store(tile + c, widen(rest));
      c += kFloats;
    }
    for (; c < pitch; c += kFloats) store(tile + c, Float{});
  }
  const int64_t missing = -rows.count & (kTokenPadding - 1);
  for (int64_t i = 0; i < missing * pitch; i += kFloats) store(tile + i, Float{});
}

static void gather(const TokenRows& rows, int64_t pitch, float* tile) {
  if (rows.dtype == DType::float32) {
    gather_as<float>(rows, pitch, tile,
                     [](const float* from) MAM_ALWAYS { return load<Float>(from); });
  } else if (rows.dtype == DType::float16) {
    gather_as<uint16_t>(rows, pitch, tile, [](const uint16_t* from) MAM_ALWAYS {
      return widened<DType::float16>(from);
    });
  } else {
    gather_as<uint16_t>(rows, pitch, tile, [](const uint16_t* from) MAM_ALWAYS {
      return widened<DType::bfloat16>(from);
    });
  }
}

// tile.scores = keys . queries of Vectors vectors of latents; rows beyond the tokens are written
// too. `largest`, unless null, becomes the largest of the tokens' scores and what it was.
template <int Vectors>
MAM_INLINE void score(const AttentionTile tile, const float* query, Float* largest) {
  for (int64_t row = 0; row < tile.tokens; row += kRows) {
    const float* const key = tile.key + row * tile.pitch;
    float* const scores = tile.scores + row * kLatents;
    Float total[kRows][Vectors] = {};
    for (int64_t c = 0; c < tile.width; ++c) {
      Float of_query[Vectors];
      for (int v = 0; v < Vectors; ++v)
        of_query[v] = load<Float>(query + c * kLatents + v * kFloats);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < Vectors; ++v) total[r][v] += key[r * tile.pitch + c] * of_query[v];
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < Vectors; ++v) store(scores + r * kLatents + v * kFloats, total[r][v]);
    if (!largest) continue;
    if (row + kRows <= tile.tokens) {
      for (int v = 0; v < Vectors; ++v) {
        Float of_rows = total[0][v];
        for (int r = 1; r < kRows; ++r) of_rows = larger(total[r][v], of_rows);
        largest[v] = larger(of_rows, largest[v]);
      }
    } else {
      for (int64_t r = 0; r < tile.tokens - row; ++r)
        for (int v = 0; v < Vectors; ++v)
          largest[v] = larger(load<Float>(scores + r * kLatents + v * kFloats), largest[v]);
    }
  }
}

// Scores to weights exp(score - shift); returns their sums.
template <int Vectors>
MAM_INLINE void weigh(const AttentionTile tile, const Float (&shift)[Vectors],
                      Float (&sum)[Vectors]) {
  float* scores = tile.scores;
  for (int64_t row = 0; row < tile.tokens; ++row, scores += kLatents)
    for (int v = 0; v < Vectors; ++v) {
      const Float weight = exponential(load<Float>(scores + v * kFloats) - shift[v]);
      store(scores + v * kFloats, weight);
      sum[v] += weight;
    }
}

// output = output shrink + weights . values. The sum over a tile is made apart: sums of sums lose
// less than one long sum does.
template <int Vectors>
MAM_INLINE void add_values(const AttentionTile tile, const Float (&shrink)[Vectors],
                           float* output) {
  for (int64_t column = 0; column < tile.width; column += kRows) {
    Float total[kRows][Vectors] = {};
    const float *value = tile.value + column, *scores = tile.scores;
    for (int64_t row = 0; row < tile.tokens; ++row, value += tile.pitch, scores += kLatents) {
      Float weight[Vectors];
      for (int v = 0; v < Vectors; ++v) weight[v] = load<Float>(scores + v * kFloats);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < Vectors; ++v) total[r][v] += value[r] * weight[v];
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < Vectors; ++v) {
        float* const to = output + (column + r) * kLatents + v * kFloats;
        store(to, load<Float>(to) * shrink[v] + total[r][v]);
      }
  }
}

template <int Vectors>
MAM_INLINE void attend_block(const AttentionTile& tile, const float* query, float* largest,
                             float* total, float* output) {
  Float now[Vectors], shift[Vectors], shrink[Vectors], sum[Vectors] = {};
  for (int v = 0; v < Vectors; ++v) now[v] = load<Float>(largest + v * kFloats);
  score<Vectors>(tile, query, now);
  for (int v = 0; v < Vectors; ++v) {
    shift[v] = now[v] == -__builtin_inff() ? Float{} : now[v];
    shrink[v] = exponential(load<Float>(largest + v * kFloats) - shift[v]);
    store(largest + v * kFloats, now[v]);
  }
  weigh<Vectors>(tile, shift, sum);
  for (int v = 0; v < Vectors; ++v)
    store(total + v * kFloats, load<Float>(total + v * kFloats) * shrink[v] + sum[v]);
  if (tile.value) add_values<Vectors>(tile, shrink, output);
}

static void attend(const AttentionTile& tile, const SoftmaxState& state) {
  const int64_t blocks = (tile.latents + kLatents - 1) / kLatents;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* const query = tile.query + block * tile.width * kLatents;
    float *const largest = state.largest + block * kLatents, *const total =
                                                                 state.total + block * kLatents;
    float* const output = tile.value ? state.output + block * tile.pitch * kLatents : nullptr;
    if (tile.latents - block * kLatents > kFloats) {
      attend_block<2>(tile, query, largest, total, output);
    } else {
      attend_block<1>(tile, query, largest, total, output);
    }
  }
}

template <int Vectors>
MAM_INLINE void importance_block(const AttentionTile& tile, const float* query,
                                 const float* logsumexp, int64_t latents, float* importance) {
  score<Vectors>(tile, query, nullptr);
  Float shift[Vectors];
  Int exists[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    shift[v] = load<Float>(logsumexp + v * kFloats);
    // a latent whose log-sum-exp is -inf attends to nothing
    exists[v] = (shift[v] != -__builtin_inff()) &
                (lane_numbers() <
                 static_cast<int32_t>(latents < kLatents ? latents - v * kFloats : kFloats));
  }
  const float* scores = tile.scores;
  for (int64_t row = 0; row < tile.tokens; ++row, scores += kLatents) {
    Float total{};
    for (int v = 0; v < Vectors; ++v) {
      const Float below = load<Float>(scores + v * kFloats) - shift[v];
      const Float attention = below > 88.0f ? splat<Float>(__builtin_inff()) : exponential(below);
      total += exists[v] ? attention : Float{};
    }
    importance[row] += sum(total);
  }
}

static void token_importance(const AttentionTile& tile, const float* logsumexp, float* importance) {
  const int64_t blocks = (tile.latents + kLatents - 1) / kLatents;
  for (int64_t block = 0; block < blocks; ++block) {
    const float *const query = tile.query + block * tile.width * kLatents, *const sums =
                                                                               logsumexp +
                                                                               block * kLatents;
    const int64_t latents = tile.latents - block * kLatents;
    if (latents > kFloats) {
      importance_block<2>(tile, query, sums, latents, importance);
    } else {
      importance_block<1>(tile, query, sums, latents, importance);
    }
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
