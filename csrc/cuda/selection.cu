// Sampling without replacement: one block a row. The largest weight, then every key, then the k-th
// smallest key, then the mask.
//
// The keys of a row stay in shared memory where they fit, else in the caller's workspace.
#include "race.cuh"

namespace mam::cuda {

namespace {

constexpr int64_t kPositionsInShared = 20480;

struct StoredKeys {
  const uint32_t* data;

  __device__ uint32_t operator()(int64_t l) const { return data[l]; }
};

struct Weights {
  const void* data;
  DType dtype;
  int64_t first, stride;
  FlagRow valid;
  float eps;

  // A weight that cannot be drawn is reported as -1.
  __device__ float operator[](int64_t l) const {
    if (!valid[l]) return -1.0f;
    const float weight = load(data, dtype, first + l * stride);
    return drawable(weight, eps) ? weight : -1.0f;
  }
};

__device__ void write_keys(const Weights& weights, int64_t positions, float largest,
                           const Weighting& weighting, const RandomRow& random, uint32_t* keys) {
  for (int64_t quad = threadIdx.x; quad * 4 < positions; quad += kRaceThreads) {
    const PhiloxWords words = random.words(quad);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t l = quad * 4 + i;
      if (l >= positions) break;
      const float weight = weights[l];
      const float relative =
          relative_weight(weight, largest, weighting.eps, weighting.inverse_temperature);
      keys[l] = weight < 0.0f ? kNeverDrawn : __float_as_uint(race_key(words.word[i], relative));
    }
  }
}

__device__ void write_mask(const StoredKeys& keys, int64_t positions, int k, uint8_t* mask) {
  if (k <= 0) {
    for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads) mask[l] = 0;
    return;
  }
  const Threshold threshold = find_threshold(keys, positions, k);
  if (threshold.taken < threshold.present) {
    visit_in_order(keys, positions, threshold,
                   [mask](int64_t l, bool chosen, int) { mask[l] = chosen; });
  } else {
    for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads)
      mask[l] = keys(l) <= threshold.key;
  }
}

__global__ void __launch_bounds__(kRaceThreads)
    select_kernel(Values values, Flags valid, const int32_t* num_samples, Draw draw,
                  Weighting weighting, uint8_t* mask, uint32_t* workspace) {
  MAM_DYNAMIC_SHARED(uint32_t, shared_keys);
  const int64_t row = blockIdx.x, positions = values.positions;
  const Weights weights{
      values.data,          values.dtype, row * values.stride_row, values.stride_position,
      flag_row(valid, row), weighting.eps};
  uint32_t* keys = workspace == nullptr ? shared_keys : workspace + row * positions;

  float largest = -1.0f;
  int count = 0;
  for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads) {
    const float weight = weights[l];
    largest = fmaxf(largest, weight);
    count += weight >= 0.0f;
  }
  largest = block_reduce(largest, Max());
  count = block_reduce(count, Sum());

  write_keys(weights, positions, largest, weighting, random_row(draw, row), keys);
  __syncthreads();
  write_mask(StoredKeys{keys}, positions, min(num_samples[row], count), mask + row * positions);
}

// The key of a latent: its uniform itself, computed again whenever it is looked at.
struct UniformKeys {
  RandomRow random;

  __device__ uint32_t operator()(int64_t n) const {
    return __float_as_uint(uniform(random.word(n)));
  }
};

__global__ void __launch_bounds__(kRaceThreads)
    draw_latents_kernel(int64_t num_latents, int64_t size, Draw draw, int64_t* out) {
  const UniformKeys keys{random_row(draw, 0)};
  const Threshold threshold = find_threshold(keys, num_latents, static_cast<int>(size));
  visit_in_order(keys, num_latents, threshold, [out](int64_t n, bool chosen, int index) {
    if (chosen) out[index] = n;
  });
}

}  // namespace

size_t select_workspace(int64_t rows, int64_t positions) {
  return positions <= kPositionsInShared ? 0 : rows * positions * sizeof(uint32_t);
}

void select(const Values& weights, const Flags& valid, const int32_t* num_samples, const Draw& draw,
            const Weighting& weighting, uint8_t* mask, void* workspace, const Launch& where) {
  const bool in_shared = weights.positions <= kPositionsInShared;
  const size_t shared_bytes = in_shared ? weights.positions * sizeof(uint32_t) : 0;
  launch("select", select_kernel, weights.rows, kRaceThreads, shared_bytes, where, weights, valid,
         num_samples, draw, weighting, mask,
         in_shared ? nullptr : static_cast<uint32_t*>(workspace));
}

void draw_latents(int64_t num_latents, int64_t size, const Draw& draw, int64_t* out,
                  const Launch& where) {
  if (size <= 0) return;
  Draw latents = draw;
  latents.sample_ids = nullptr;
  launch("draw_latents", draw_latents_kernel, 1, kRaceThreads, 0, where, num_latents, size, latents,
         out);
}

}  // namespace mam::cuda
