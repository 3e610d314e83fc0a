// Products of the size of the parameters, which every call pays for whatever its batch.

#include "cpu/collapse.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/workers.h"

namespace mam {
namespace cpu {

namespace {

// out = weight^T matrix: `outs` rows from `rows` of them; weight (rows, outs).
void product(const float* weight, const float* matrix, int64_t rows, int64_t outs, int64_t width, float* out) {
  kernels().combine({matrix, rows, width, width, weight, outs, 1, out, outs, width, false});
}

// out = weight matrix: weight (outs, rows).
void product_by_rows(const float* weight, const float* matrix, int64_t rows, int64_t outs, int64_t width, float* out, bool add = false) {
  kernels().combine({matrix, rows, width, width, weight, 1, rows, out, outs, width, add});
}

double dot(const float* a, const float* b, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += static_cast<double>(a[i]) * b[i];
  return total;
}

bool occupied(const ContextInput& from, int64_t row) {
  return from.log_partition[row * from.num_latents * from.heads] > -std::numeric_limits<float>::infinity();
}

// What a cell's attended output has besides its means: r of collapse.py.
void offset_of(const ContextInput& from, int64_t row, float* offset) {
  const bool any = occupied(from, row);
  for (int64_t c = 0; c < from.width; ++c) offset[c] = from.out_bias[c] + (any ? from.constant[c] : 0.0f);
}

}  // namespace

void project(const Projection& from, const Projected& to) {
  const Kernels& run = kernels();
  const int64_t width = from.width, heads = from.heads, head = from.head_width(), square = width * width;
  float *const key = to.unit, *const gain = key + width, *const nothing = gain + width;  // nothing: e
  run.dots(from.in_weight + square, 2 * width, width, width, from.token_weight, key);    // keys and values of a unit
  run.dots(from.in_weight + 2 * square, width, width, width, from.token_bias, nothing);
  for (int64_t i = 0; i < width; ++i) nothing[i] += from.in_bias[2 * width + i];

  const float scale = 1.0f / std::sqrt(static_cast<float>(head));
  Buffer<float> bias(heads);
  for (int64_t h = 0; h < heads; ++h) {
    product(key + h * head, from.in_weight + h * head * width, head, 1, width, to.folded + h * width);
    bias[h] = static_cast<float>(dot(key + h * head, from.in_bias + h * head, head));
  }
  for (int64_t n = 0; n < from.num_latents; ++n) {
    float* const slope = to.slope + n * heads;
    run.dots(to.folded, heads, width, width, from.latents + n * width, slope);
    for (int64_t h = 0; h < heads; ++h) slope[h] = scale * (slope[h] + bias[h]);
  }
  for (int64_t h = 0; h < heads; ++h) run.dots(from.out_weight + h * head, width, head, width, gain + h * head, to.directions + h * width);
  run.dots(from.out_weight, width, width, width, nothing, to.constant);
}

void project_backward(const Projection& from, const float* folded, const float* unit, const ProjectedGradient& incoming,
                      const ProjectionGradient& outgoing) {
  const int64_t width = from.width, heads = from.heads, head = from.head_width(), latents = from.num_latents, square = width * width;
  const float *const key = unit, *const gain = key + width;  // and the value of nothing after them
  const float scale = 1.0f / std::sqrt(static_cast<float>(head));

  // Latents and what the slopes leave for the queries: a = scale (latents folded^T + bias)
  Buffer<float> grad_slope(latents * heads), grad_folded(heads * width), grad_bias(heads);
  std::fill_n(grad_bias.get(), heads, 0.0f);
  for (int64_t n = 0; n < latents; ++n)
    for (int64_t h = 0; h < heads; ++h) {
      grad_slope[n * heads + h] = scale * incoming.slope[n * heads + h];
      grad_bias[h] += grad_slope[n * heads + h];
    }
  product(grad_slope.get(), from.latents, latents, heads, width, grad_folded.get());
  product_by_rows(grad_slope.get(), folded, heads, latents, width, outgoing.latents);

  // Keys and values of a unit, and the value of nothing, in that order; each of the last two beside its tokens' gradient
  Buffer<float> grad_unit(3 * width);
  float *const grad_key = grad_unit.get(), *const grad_gain = grad_key + width, *const grad_nothing = grad_gain + width;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t first = h * head;
    kernels().dots(from.in_weight + first * width, head, width, width, grad_folded.get() + h * width, grad_key + first);
    for (int64_t i = first; i < first + head; ++i) grad_key[i] += grad_bias[h] * from.in_bias[i];
    kernels().combine(
        {from.out_weight + first, width, head, width, incoming.directions + h * width, 1, 0, grad_gain + first, 1, width, false});
    kernels().combine({grad_folded.get() + h * width, 1, width, width, key + first, 0, 1, outgoing.in_weight + first * width, head, width,
                       false});  // the queries' weight: key (outer) gradient of folded
    for (int64_t i = first; i < first + head; ++i) outgoing.in_bias[i] = key[i] * grad_bias[h];
  }
  product(incoming.constant, from.out_weight, width, 1, width, grad_nothing);
  product(grad_key, from.in_weight + square, 2 * width, 1, width, outgoing.token_weight);
  product(grad_nothing, from.in_weight + 2 * square, width, 1, width, outgoing.token_bias);

  // Weights of keys and values: both are outer products with what a token is
  Buffer<float> token(2 * width);
  std::copy_n(from.token_weight, width, token.get());
  std::copy_n(from.token_bias, width, token.get() + width);
  kernels().combine({token.get(), 1, width, width, grad_key, 0, 1, outgoing.in_weight + square, width, width, false});
  kernels().combine({token.get(), 2, width, width, grad_gain, width, 1, outgoing.in_weight + 2 * square, width, width, false});
  // The constant of a key cancels in the softmax, and its bias has no gradient.
  std::fill_n(outgoing.in_bias + width, width, 0.0f);
  std::copy_n(grad_nothing, width, outgoing.in_bias + 2 * width);

  // The output's weight, head by head: rows (gain, value of nothing), weighted by the gradients of (direction, constant)
  Buffer<float> weight(2 * width);
  std::copy_n(incoming.constant, width, weight.get() + width);
  for (int64_t h = 0; h < heads; ++h) {
    std::copy_n(incoming.directions + h * width, width, weight.get());
    kernels().combine({gain + h * head, 2, head, width, weight.get(), width, 1, outgoing.out_weight + h * head, width, width, false});
  }
}

void context(const ContextInput& from, const ContextOutput& to) {
  const int64_t rows = from.rows, latents = from.num_latents, heads = from.heads, width = from.width;
  for (int64_t g = 0; g < heads; ++g)
    kernels().dots(from.directions, heads, width, width, from.directions + g * width, to.gram + g * heads);

  Buffer<float> offset(width), share(latents), products(heads * heads);
  Buffer<double> second(heads * heads);  // over all cells, in double
  std::fill_n(share.get(), latents, 1.0f / static_cast<float>(latents));
  std::fill_n(second.get(), heads * heads, 0.0);
  double cross = 0;  // sum of |r|^2 + 2 mean(m) P r^T = 2 r . (context - r / 2)
  for (int64_t row = 0; row < rows; ++row) {
    const float* const mean = from.mean + row * latents * heads;
    float* const out = to.context + row * width;
    float* const average = to.average + row * heads;
    product(share.get(), mean, latents, 1, heads, average);
    product(mean, mean, latents, heads, heads, products.get());
    for (int64_t i = 0; i < heads * heads; ++i) second[i] += products[i];
    offset_of(from, row, offset.get());
    std::copy_n(offset.get(), width, out);
    product_by_rows(average, from.directions, heads, 1, width, out, true);
    for (int64_t c = 0; c < width; ++c) cross += static_cast<double>(offset[c]) * (out[c] - 0.5f * offset[c]);
  }
  double squared_norm = 2.0 * static_cast<double>(latents) * cross;
  for (int64_t i = 0; i < heads * heads; ++i) {
    to.second[i] = static_cast<float>(second[i]);
    squared_norm += second[i] * to.gram[i];
  }
  *to.penalty = static_cast<float>(squared_norm / static_cast<double>(std::max<int64_t>(rows, 1)));
}

void context_backward(const ContextInput& from, const float* average, const float* second, const float* gram, const float* grad_context,
                      float grad_penalty, const ContextGradient& outgoing) {
  const int64_t rows = from.rows, latents = from.num_latents, heads = from.heads, width = from.width;
  const float twice = 2.0f * grad_penalty / static_cast<float>(std::max<int64_t>(rows, 1)),
              by_latents = twice * static_cast<float>(latents);
  Buffer<float> quadratic(heads * heads), pulled(rows * width), offset(width), shared(heads), spread(width), grad_mean(latents * heads);
  Buffer<double> slope(latents * heads), constant(width), bias(width);  // over all cells: in double, for there may be many
  for (int64_t i = 0; i < heads * heads; ++i) quadratic[i] = twice * gram[i];
  std::fill_n(slope.get(), latents * heads, 0.0);
  std::fill_n(constant.get(), width, 0.0);
  std::fill_n(bias.get(), width, 0.0);
  for (int64_t row = 0; row < rows; ++row) {
    float* const pull = pulled.get() + row * width;
    offset_of(from, row, offset.get());
    for (int64_t c = 0; c < width; ++c) pull[c] = grad_context[row * width + c] + by_latents * offset[c];

    kernels().dots(from.directions, heads, width, width, pull, shared.get());
    for (int64_t h = 0; h < heads; ++h) shared[h] /= static_cast<float>(latents);
    for (int64_t n = 0; n < latents; ++n) std::copy_n(shared.get(), heads, grad_mean.get() + n * heads);
    product_by_rows(from.mean + row * latents * heads, quadratic.get(), heads, latents, heads, grad_mean.get(), true);
    const float* const variance = from.variance + row * latents * heads;
    for (int64_t i = 0; i < latents * heads; ++i) slope[i] += static_cast<double>(grad_mean[i]) * variance[i];

    product_by_rows(average + row * heads, from.directions, heads, 1, width, spread.get());
    const bool any = occupied(from, row);
    for (int64_t c = 0; c < width; ++c) {
      const double gradient = pull[c] + by_latents * spread[c];
      bias[c] += gradient;
      if (any) constant[c] += gradient;
    }
  }
  product(average, pulled.get(), rows, heads, width, outgoing.directions);
  Buffer<float> moments(heads * heads);
  for (int64_t i = 0; i < heads * heads; ++i) moments[i] = twice * second[i];
  product_by_rows(moments.get(), from.directions, heads, heads, width, outgoing.directions, true);
  for (int64_t i = 0; i < latents * heads; ++i) outgoing.slope[i] = static_cast<float>(slope[i]);
  for (int64_t c = 0; c < width; ++c) {
    outgoing.constant[c] = static_cast<float>(constant[c]);
    outgoing.out_bias[c] = static_cast<float>(bias[c]);
  }
}

}  // namespace cpu
}  // namespace mam
