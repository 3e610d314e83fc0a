// Gradients of the attention of latents over tokens on the CPU. See
// mam_kernels/ops/latent_attention/README.md.

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

// Cells are summed over in so many parts, whatever the number of threads, and the parts in order.
constexpr int64_t kParts = 8;

// One thread's memory. Of the latents of a head: their gradients as columns and as rows,
// log-sum-exp and delta.
struct Scratch {
  TileScratch tile;
  Buffer<float> grad_scores, grad_key, grad_value, grad, grad_rows, logsumexp, delta, row, other;

  void reset(int64_t lanes, int64_t width, int64_t pitch) {
    tile.reset(pitch, true);
    grad_scores.reset(kTileTokens * kernels().block);
    for (Buffer<float>* gradient : {&grad_key, &grad_value}) gradient->reset(kTileTokens * pitch);
    grad.reset(lanes * width);
    grad_rows.reset(lanes * pitch);
    for (Buffer<float>* numbers : {&logsumexp, &delta}) numbers->reset(lanes);
    for (Buffer<float>* numbers : {&row, &other}) numbers->reset(width);
    // What stands beyond the latents and the width is read in whole vectors.
    std::fill_n(grad.get(), lanes * width, 0.0f);
    std::fill_n(grad_rows.get(), lanes * pitch, 0.0f);
    std::fill_n(logsumexp.get(), lanes, 0.0f);
    std::fill_n(delta.get(), lanes, 0.0f);
  }
};

// What comes in, but for the tokens.
struct Incoming {
  const void* grad_out;
  const void* out;
  const float* grad_logsumexp;  // or null
  const float* logsumexp;
};

void load_latents(const Incoming& from, const Tokens& query, int64_t row, int64_t head,
                  const Scratch& to) {
  const int64_t block = kernels().block, width = query.width, pitch = padded(width);
  for (int64_t n = 0; n < query.positions; ++n) {
    const int64_t at = (row * query.positions + n) * query.heads + head;
    const float *const grad =
                           floats(from.grad_out, query.dtype, at * width, 1, width, to.row.get()),
                       *const out =
                           floats(from.out, query.dtype, at * width, 1, width, to.other.get());
    float* const column = to.grad.get() + n / block * width * block + n % block;
    float total = from.grad_logsumexp ? -from.grad_logsumexp[at] : 0.0f;
    for (int64_t c = 0; c < width; ++c) {
      column[c * block] = grad[c];
      total += grad[c] * out[c];
    }
    std::copy_n(grad, width, to.grad_rows.get() + n * pitch);
    to.delta[n] = total;
    to.logsumexp[n] = from.logsumexp[at];
  }
}

// Latents of every head as rows: (heads, lanes, pitch), scaled.
Buffer<float> rows_of(const Queries& queries, const Tokens& query) {
  const int64_t block = kernels().block, lanes = queries.blocks * block, width = query.width,
                pitch = padded(width);
  Buffer<float> rows(query.heads * lanes * pitch);
  std::fill_n(rows.get(), query.heads * lanes * pitch, 0.0f);
  for (int64_t h = 0; h < query.heads; ++h)
    for (int64_t n = 0; n < query.positions; ++n)
      for (int64_t c = 0; c < width; ++c)
        rows[(h * lanes + n) * pitch + c] = queries.at(h, n / block, width)[c * block + n % block];
  return rows;
}

}  // namespace

size_t attention_backward_workspace(const Tokens&, const Tokens&) { return 0; }

void latent_attention_backward(const void* grad_out, const float* grad_logsumexp,
                               const Tokens& query, const Tokens& key, const Tokens& value,
                               const Flags& valid, const void* out, const float* logsumexp,
                               float scale, float* dq, float* dk, float* dv, void*,
                               const Launch& launch) {
  const int64_t block = kernels().block, heads = query.heads, width = query.width,
                pitch = padded(width), latents = query.positions;
  const Queries queries(query, nullptr, latents, scale);
  const int64_t lanes = queries.blocks * block, state = lanes * pitch;
  const Buffer<float> query_rows = rows_of(queries, query);
  const Incoming incoming{grad_out, out, grad_logsumexp, logsumexp};

  // An item: a head, and some rows.
  const int64_t parts = std::min(kParts, key.batch), rows = ceil_div(key.batch, parts),
                items = parts * heads;
  const int threads = threads_for(items, launch.threads);
  Buffer<float> sums(items * state);
  std::fill_n(sums.get(), items * state, 0.0f);
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  for (Scratch& mine : scratch) mine.reset(lanes, width, pitch);
  parallel_for(items, threads, [&](int64_t item, int thread) {
    Scratch& mine = scratch[static_cast<size_t>(thread)];
    TileScratch& tile = mine.tile;
    const int64_t head = item % heads, first = item / heads * rows;
    for (int64_t row = first; row < std::min(key.batch, first + rows); ++row) {
      load_latents(incoming, query, row, head, mine);
      for (int64_t from = 0; from < key.positions;) {
        const int64_t begin = from,
                      count = next_tile(valid, row, key.positions, &from, tile.position);
        if (valid.data)
          for (float* gradient : {dk, dv})
            for (int64_t l = begin; l < from; ++l)
              std::fill_n(gradient + ((row * key.positions + l) * heads + head) * width, width,
                          0.0f);
        if (count == 0) break;
        kernels().gather(token_rows(key, row, head, tile.position, count), pitch, tile.key.get());
        kernels().gather(token_rows(value, row, head, tile.position, count), pitch,
                         tile.value.get());
        kernels().attend_backward({{queries.at(head, 0, width), latents, width, tile.key.get(),
                                    tile.value.get(), count, pitch, tile.scores.get()},
                                   query_rows.get() + head * state,
                                   mine.grad.get(),
                                   mine.grad_rows.get(),
                                   mine.logsumexp.get(),
                                   mine.delta.get(),
                                   mine.grad_scores.get(),
                                   sums.get() + item * state,
                                   mine.grad_key.get(),
                                   mine.grad_value.get()});
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = ((row * key.positions + tile.position[i]) * heads + head) * width;
          std::copy_n(mine.grad_key.get() + i * pitch, width, dk + at);
          std::copy_n(mine.grad_value.get() + i * pitch, width, dv + at);
        }
      }
    }
  });
  for (int64_t n = 0; n < latents; ++n)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t c = 0; c < width; ++c) {
        const float* const from =
            sums.get() + h * state + (n / block * pitch + c) * block + n % block;
        float total = 0;
        for (int64_t part = 0; part < parts; ++part) total += from[part * heads * state];
        dq[(n * heads + h) * width + c] = scale * total;
      }
}

}  // namespace cpu
}  // namespace mam
