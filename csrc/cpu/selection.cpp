// Sampling without replacement on the CPU.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/drawing.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workers.h"
#include "mam/keys.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

// Above this uniform, float32 is coarser near 1 than the keys' own rounding allows.
constexpr float kLargestResolvedUniform = 0.875f;

}  // namespace

RowDraw row_draw(const Draw& draw, int64_t row) {
  const uint64_t seed = draw.seed_ptr ? static_cast<uint64_t>(*draw.seed_ptr) : draw.seed;
  const uint32_t step = draw.step_ptr ? static_cast<uint32_t>(*draw.step_ptr) : draw.step;
  return {seed, static_cast<uint32_t>(draw.sample_ids ? draw.sample_ids[row] : row), step,
          draw.stream};
}

void draw_row(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
              const RowDraw& draw, const Weighting& weighting, const DrawScratch& scratch,
              uint8_t* mask) {
  int32_t *const keys = scratch.keys.get(), *const candidates = scratch.candidates.get();
  if (k > 0 &&
      kernels().draw_fused(weight, flags, positions, k, draw, weighting, keys, candidates, mask))
    return;
  const int64_t drawable = kernels().race(weight, flags, positions, draw, weighting, keys);
  k = std::min(std::max<int64_t>(k, 0), drawable);
  if (k == 0) {
    std::memset(mask, 0, static_cast<size_t>(positions));
    return;
  }
  const int32_t threshold = k == drawable
                                ? kInfiniteKey - 1
                                : kernels().threshold(keys, positions, drawable, k, candidates);
  kernels().mark(keys, positions, threshold, k, mask);
}

int64_t race_uniforms(const uint8_t* flags, int64_t positions, const RowDraw& draw,
                      const std::vector<Ahead>& ahead, const DrawScratch& scratch) {
  return kernels().uniform_race(flags, positions, draw, ahead.data(),
                                static_cast<int>(ahead.size()), scratch.keys.get());
}

bool draw_grouped_row(const Entries& entries, const float* importance, float of_zero,
                      int64_t positions, int64_t left, int64_t k, const Weighting& weighting,
                      const DrawScratch& scratch, uint8_t* mask) {
  if (!drawable(of_zero, weighting.eps)) return false;
  const int64_t num_drawable = left - kernels().adjust(importance, entries.position, entries.count,
                                                       of_zero, weighting, scratch.keys.get());
  if (k <= 0 || k >= num_drawable) return false;
  const int32_t threshold =
      kernels().threshold(scratch.keys.get(), positions, num_drawable, k, scratch.candidates.get());
  float largest;
  std::memcpy(&largest, &threshold, sizeof largest);
  if (largest > kLargestResolvedUniform) return false;
  kernels().mark(scratch.keys.get(), positions, threshold, k, mask);
  return true;
}

size_t select_workspace(int64_t, int64_t) { return 0; }

void select(const Values& weights, const Flags& valid, const int32_t* num_samples, const Draw& draw,
            const Weighting& weighting, uint8_t* mask, void*, const Launch& launch) {
  const int threads = threads_for(weights.rows, launch.threads);
  const int64_t positions = weights.positions;
  struct Scratch {
    DrawScratch draw;
    Buffer<float> weight;
    Buffer<uint8_t> flags;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  for (Scratch& mine : scratch) {
    mine.draw.reset(positions);
    mine.weight.reset(positions);
    mine.flags.reset(positions);
  }
  parallel_for(weights.rows, threads, [&](int64_t row, int thread) {
    const Scratch& mine = scratch[static_cast<size_t>(thread)];
    draw_row(dense_row(weights, row, mine.weight.get()),
             flag_row(valid, row, positions, mine.flags.get()), positions, num_samples[row],
             row_draw(draw, row), weighting, mine.draw, mask + row * positions);
  });
}

void draw_latents(int64_t num_latents, int64_t size, const Draw& draw, int64_t* out,
                  const Launch&) {
  const RowDraw words = row_draw(draw, 0);
  std::vector<float> key(static_cast<size_t>(num_latents));
  for (int64_t n = 0; n < num_latents; ++n) {
    const PhiloxWords random = philox(words.seed, static_cast<uint32_t>(n >> 2), words.sample_id,
                                      words.step, words.stream);
    key[static_cast<size_t>(n)] = uniform(random.word[n & 3]);
  }
  std::vector<int64_t> order(key.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return key[static_cast<size_t>(a)] < key[static_cast<size_t>(b)];
  });
  std::copy(order.begin(), order.begin() + size, out);
  std::sort(out, out + size);
}

}  // namespace cpu
}  // namespace mam
