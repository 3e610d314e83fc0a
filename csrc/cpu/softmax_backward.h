// Gradients of the attention of softmax.h: five products of a tile of tokens and a block of
// latents, the attention and its gradient in scratch memory between them.
#pragma once

#include "cpu/products.h"
#include "cpu/softmax.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

// Scores to attention A = exp(score - logsumexp), and products of gradients and values to gradients
// of the scores, A (product - delta).
template <int Vectors>
MAM_INLINE void score_gradients(const AttentionGradient& gradient, const float* logsumexp,
                                const float* delta) {
  Float shift[Vectors], less[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    shift[v] = load<Float>(logsumexp + v * kFloats);
    // a latent whose log-sum-exp is -inf attends to nothing
    shift[v] = shift[v] == -__builtin_inff() ? splat<Float>(__builtin_inff()) : shift[v];
    less[v] = load<Float>(delta + v * kFloats);
  }
  float *scores = gradient.tile.scores, *products = gradient.grad_scores;
  for (int64_t row = 0; row < gradient.tile.tokens; ++row, scores += kLatents, products += kLatents)
    for (int v = 0; v < Vectors; ++v) {
      const Float below = load<Float>(scores + v * kFloats) - shift[v];
      const Float attention = below > 88.0f ? splat<Float>(__builtin_inff()) : exponential(below);
      store(scores + v * kFloats, attention);
      store(products + v * kFloats, attention * (load<Float>(products + v * kFloats) - less[v]));
    }
}

template <int Vectors>
MAM_INLINE void attend_backward_block(const AttentionGradient& gradient, int64_t block) {
  AttentionTile tile = gradient.tile;
  const int64_t columns = block * tile.width * kLatents, first = block * kLatents;
  score<Vectors>(tile, tile.query + columns, nullptr);
  AttentionTile other = tile;  // the gradients against the values
  other.key = tile.value;
  other.scores = gradient.grad_scores;
  score<Vectors>(other, gradient.grad + columns, nullptr);
  score_gradients<Vectors>(gradient, gradient.logsumexp + first, gradient.delta + first);

  other.value = tile.key;
  Float one[Vectors];
  for (int v = 0; v < Vectors; ++v) one[v] = splat<Float>(1.0f);
  add_values<Vectors>(other, one, gradient.grad_query + block * tile.pitch * kLatents);

  const int64_t latents = tile.latents - first < kLatents ? tile.latents - first : kLatents,
                rows = first * tile.pitch;
  combine({gradient.grad_rows + rows, latents, tile.width, tile.pitch, tile.scores, 1, kLatents,
           gradient.grad_value, tile.tokens, tile.pitch, block > 0});
  combine({gradient.query_rows + rows, latents, tile.width, tile.pitch, gradient.grad_scores, 1,
           kLatents, gradient.grad_key, tile.tokens, tile.pitch, block > 0});
}

static void attend_backward(const AttentionGradient& gradient) {
  const int64_t latents = gradient.tile.latents;
  for (int64_t block = 0; block * kLatents < latents; ++block) {
    if (latents - block * kLatents > kFloats) {
      attend_backward_block<2>(gradient, block);
    } else {
      attend_backward_block<1>(gradient, block);
    }
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
