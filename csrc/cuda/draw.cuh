// The draw of one row from its weights, which are in memory.
#pragma once

#include "candidates.cuh"
#include "interval.cuh"
#include "race.cuh"

namespace mam::cuda {

// One row of weights, of any type and strides.
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

// Four weights at a time. Of a whole row, four lie in one piece of memory.
template <bool Whole, bool Flagged>
struct Quads {
  const Weights& weights;
  int64_t positions;

  __device__ __forceinline__ float4 operator()(int64_t quad) const {
    if constexpr (Whole) {
      const float4* const data =
          reinterpret_cast<const float4*>(static_cast<const float*>(weights.data) + weights.first);
      return __ldg(data + quad);
    } else {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = quad * 4 + i < positions ? weights[quad * 4 + i] : -1.0f;
      return make_float4(x[0], x[1], x[2], x[3]);
    }
  }
  // 255 in the bytes of the positions that can be drawn, as far as flags say.
  __device__ __forceinline__ uint32_t allowed(int64_t quad) const {
    if constexpr (!Flagged) return 0xFFFFFFFFu;
    return bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(weights.valid.data) + quad));
  }
  __device__ __forceinline__ void write(uint8_t* mask, int64_t quad, uint32_t bytes) const {
    if constexpr (Whole) {
      reinterpret_cast<uint32_t*>(mask)[quad] = bytes;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (quad * 4 + i < positions) mask[quad * 4 + i] = bytes >> (8 * i) & 1u;
    }
  }
};

// What one thread finds out about its positions.
struct Sifted {
  unsigned marked;  // positions whose keys are below the interval for sure
  uint32_t flags;   // a bit for each position whose key may be in it: 8 j + i in turn i
  float largest;    // weight; NaN aside
};

// Four positions: marks them in the mask, or flags them.
template <bool Steep, bool Whole, bool Flagged>
__device__ __forceinline__ void sift(const Quads<Whole, Flagged>& quads, int quad, float4 weight,
                                     const Interval& it, const RandomRow& random, uint32_t bit,
                                     uint8_t* mask, Sifted& sifted) {
  const float x[4] = {weight.x, weight.y, weight.z, weight.w};
  const PhiloxWords complement = random.complements(quad);
  uint32_t early[4], late[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float q = it.decay(x[i]);
    // 2 - v, less what is cut off: with the curve of a probability it reaches 2 where v is below
    // that, and bit 23 says so.
    const float rest = __uint_as_float((complement.word[i] >> 9) + 0x3F800000u);
    early[i] = __float_as_uint(rest + (Steep ? it.surely_steep(x[i]) : it.surely(q)));
    late[i] = __float_as_uint(rest + it.perhaps(q));
  }
  sifted.largest = fmaxf(sifted.largest, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
  const uint32_t not_surely = bytes_of_bit_23(early), not_perhaps = bytes_of_bit_23(late),
                 allowed = quads.allowed(quad);
  const uint32_t bytes = ~not_surely & allowed & 0x01010101u;
  quads.write(mask, quad, bytes);
  sifted.marked = sum_of_bytes(bytes, sifted.marked);
  sifted.flags |= not_surely & ~not_perhaps & allowed & bit;
}

// All positions of the row.
template <bool Steep, bool Whole, bool Flagged>
__device__ __forceinline__ Sifted sift_row(const Quads<Whole, Flagged>& quads, const Interval& it,
                                           const RandomRow& random, const Candidates& candidates,
                                           uint8_t* mask) {
  constexpr int kAtOnce = 4;  // loads that are under way at once
  const int count = static_cast<int>((quads.positions + 3) / 4);
  Sifted sifted{0, 0, -1.0f};
  int quad = threadIdx.x;
  uint32_t* word = candidates.flags + threadIdx.x;
#pragma unroll 1
  for (; quad + (kTurns - 1) * kRaceThreads < count;
       word += kRaceThreads) {  // trips: L // (32 * threads)
    sifted.flags = 0;
    uint32_t bit = 0x01010101u;
#pragma unroll 1
    for (int turn = 0; turn < kTurns; turn += kAtOnce) {  // trips: 2
      float4 weight[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) weight[i] = quads(quad + i * kRaceThreads);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        sift<Steep>(quads, quad + i * kRaceThreads, weight[i], it, random, bit << i, mask, sifted);
      quad += kAtOnce * kRaceThreads;
      bit <<= kAtOnce;
    }
    *word = sifted.flags;
  }
  sifted.flags = 0;
#pragma unroll 1
  for (uint32_t bit = 0x01010101u; quad < count;
       quad += kRaceThreads, bit += bit)  // trips: L / (4 * threads) % 8
    sift<Steep>(quads, quad, quads(quad), it, random, bit, mask, sifted);
  if (word < candidates.flags + candidates.words) *word = sifted.flags;
  return sifted;
}

// The key of a position, relative to a power of two near the mean of the weights.
template <bool Whole>
struct ScaledKeys {
  const Weights& weights;
  RandomRow random;
  float scale;

  __device__ __forceinline__ float operator()(uint32_t l) const {
    // of a whole row only positions that the flags allow are asked for
    const float weight =
        Whole ? __ldg(static_cast<const float*>(weights.data) + weights.first + l) : weights[l];
    const float key =
        standard_exponential(uniform(random.word(l))) / ((weight + weights.eps) * scale);
    return drawable(weight, weights.eps) ? key : INFINITY;
  }
};

// False where the row has to be drawn by all keys.
template <bool Whole, bool Flagged>
__device__ __forceinline__ bool draw_in_one_pass(const Weights& weights, int64_t positions, int k,
                                                 const RandomRow& random,
                                                 const Candidates& candidates, uint8_t* mask) {
  __shared__ Interval shared_interval;
  __shared__ int infinite;
  const Quads<Whole, Flagged> quads{weights, positions};
  // phase: sample and interval
  if (threadIdx.x < kWarp) {  // share: 1 / warps
    float sample[4 * kSampleQuads];
    const int64_t whole = positions / 4;
#pragma unroll
    for (int i = 0; i < kSampleQuads; ++i) {
      const int64_t quad = whole * (i * kWarp + threadIdx.x) / (kSampleQuads * kWarp);
      const float4 x = quads(quad);
      const uint32_t allowed = quads.allowed(quad);
      const float each[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sample[4 * i + j] =
            drawable(each[j], weights.eps) && (allowed >> (8 * j) & 1u) ? each[j] : -1.0f;
    }
    const Interval it =
        likely_interval(sample, {0.0f, 0.0f, static_cast<float>(positions)}, weights.eps, k);
    if (threadIdx.x == 0) {
      shared_interval = it;
      infinite = 0;
    }
  }
  __syncthreads();
  const Interval it = shared_interval;
  if (!it.known) return false;
  // phase: pass

  Sifted sifted;
  if (it.steep) {
    // share: steep
    sifted = sift_row<true>(quads, it, random, candidates, mask);
  } else {
    // share: 1 - steep
    sifted = sift_row<false>(quads, it, random, candidates, mask);
  }
  unsigned marked = sifted.marked;
  // An infinite weight would be taken for a heavy one.
  if (sifted.largest == INFINITY) infinite = 1;
  // phase: candidates
  const int count = list_flagged(candidates.flags, candidates.words, candidates.position,
                                 candidates.most, marked);
  if (infinite != 0 || count > candidates.most) return false;
  const int wanted = k - static_cast<int>(marked);
  return mark_smallest(candidates, count, wanted, it.from, it.to,
                       ScaledKeys<Whole>{weights, random, it.scale}, mask);
}

// The key of a position, relative to the largest weight; computed again whenever it is looked at.
struct RelativeKeys {
  const Weights& weights;
  RandomRow random;
  float largest;
  Weighting weighting;

  __device__ uint32_t operator()(int64_t l) const {
    const float weight = weights[l];
    if (weight < 0.0f) return kNeverDrawn;
    const float relative =
        relative_weight(weight, largest, weighting.eps, weighting.inverse_temperature);
    return __float_as_uint(race_key(random.word(l), relative));
  }
};

__device__ inline void draw_by_all_keys(const Weights& weights, int64_t positions, int k,
                                        const RandomRow& random, const Weighting& weighting,
                                        uint8_t* mask) {
  float largest = -1.0f;
  int count = 0;
  for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads) {
    const float weight = weights[l];
    largest = fmaxf(largest, weight);
    count += weight >= 0.0f;
  }
  largest = block_reduce(largest, Max());
  k = min(k, block_reduce(count, Sum()));
  if (k <= 0) {
    for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads) mask[l] = 0;
    return;
  }
  const RelativeKeys keys{weights, random, largest, weighting};
  const Threshold threshold = find_threshold(keys, positions, k);
  visit_in_order(keys, positions, threshold,
                 [mask](int64_t l, bool chosen, int) { mask[l] = chosen; });
}

}  // namespace mam::cuda
