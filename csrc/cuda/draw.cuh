// The draw of one row from its weights, which are in memory.
#pragma once

#include "candidates.cuh"
#include "weights.cuh"

namespace mam::cuda {

// What one thread finds out about its positions.
struct Sifted {
  unsigned marked;  // positions whose keys are below the interval for sure
  uint32_t flags;   // a bit for each position whose key may be in it: 8 j + i in turn i
  float largest;    // weight; NaN aside
};

// How the pass takes a row.
template <bool Steep_, bool Whole_, bool Flagged_, bool Sharp_>
struct Way {
  static constexpr bool Steep = Steep_, Whole = Whole_, Flagged = Flagged_, Sharp = Sharp_;
  using Quad = Quads<Whole, Flagged>;
};

// Four positions: marks them in the mask, or flags them.
template <typename Way>
__device__ __forceinline__ void sift(const typename Way::Quad& quads, int quad, float4 weight,
                                     const Interval& it, const Sharpening& sharp,
                                     const RandomRow& random, uint32_t bit, uint8_t* mask,
                                     Sifted& sifted) {
  float x[4] = {weight.x, weight.y, weight.z, weight.w};
  const PhiloxWords complement = random.complements(quad);
  const uint32_t allowed = quads.allowed(quad);
  if constexpr (Way::Sharp && Way::Flagged) {  // the largest decides on the keys
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = allowed >> (8 * i) & 1u ? x[i] : -1.0f;
  }
  sifted.largest = fmaxf(sifted.largest, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
  uint32_t early[4], late[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Way::Sharp) x[i] = sharp(x[i]);
    const float q = it.decay(x[i]);
    // 2 - v, less what is cut off: with the curve of a probability it reaches 2 where v is below
    // that, and bit 23 says so.
    const float rest = __uint_as_float((complement.word[i] >> 9) + 0x3F800000u);
    early[i] = __float_as_uint(rest + (Way::Steep ? it.surely_steep(x[i]) : it.surely(q)));
    late[i] = __float_as_uint(rest + it.perhaps(q));
  }
  const uint32_t not_surely = bytes_of_bit_23(early), not_perhaps = bytes_of_bit_23(late);
  const uint32_t bytes = ~not_surely & allowed & 0x01010101u;
  quads.write(mask, quad, bytes);
  sifted.marked = sum_of_bytes(bytes, sifted.marked);
  sifted.flags |= not_surely & ~not_perhaps & allowed & bit;
}

// All positions of the row.
template <typename Way>
__device__ __forceinline__ Sifted sift_row(const typename Way::Quad& quads, const Interval& it,
                                           const Sharpening& sharp, const RandomRow& random,
                                           const Candidates& candidates, uint8_t* mask) {
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
        sift<Way>(quads, quad + i * kRaceThreads, weight[i], it, sharp, random, bit << i, mask,
                  sifted);
      quad += kAtOnce * kRaceThreads;
      bit <<= kAtOnce;
    }
    *word = sifted.flags;
  }
  sifted.flags = 0;
#pragma unroll 1
  for (uint32_t bit = 0x01010101u; quad < count;
       quad += kRaceThreads, bit += bit)  // trips: L / (4 * threads) % 8
    sift<Way>(quads, quad, quads(quad), it, sharp, random, bit, mask, sifted);
  if (word < candidates.flags + candidates.words) *word = sifted.flags;
  return sifted;
}

// Marks all that can be drawn; how many these are.
template <bool Whole, bool Flagged>
__device__ __forceinline__ unsigned mark_all(const Quads<Whole, Flagged>& quads, uint8_t* mask) {
  unsigned marked = 0;
  // trips: L / (16 * threads) | 0
  for_each_quad(quads, [&](int quad, const float (&x)[4], uint32_t allowed) {
    uint32_t bytes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (drawable(x[i], quads.weights.eps)) bytes |= 1u << (8 * i);
    bytes &= allowed;
    quads.write(mask, quad, bytes);
    marked = sum_of_bytes(bytes, marked);
  });
  return block_reduce_of<kRaceThreads / kWarp>(marked, Sum());
}

// What the pass took infinite weights for.
struct Infinite {
  unsigned marked;  // of this thread's positions, and taken back
  float largest;    // weight that is not infinite
};

template <bool Whole, bool Flagged>
__device__ __forceinline__ Infinite take_back_infinite(const Quads<Whole, Flagged>& quads,
                                                       uint8_t* mask) {
  Infinite found{0, -1.0f};
  // trips: L / (16 * threads) | 0
  for_each_quad(quads, [&](int quad, const float (&x)[4], uint32_t allowed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool counts = allowed >> (8 * i) & 1u;
      if (x[i] < INFINITY) {
        if (counts) found.largest = fmaxf(found.largest, x[i]);
      } else if (x[i] == INFINITY && counts) {  // share: 0
        found.marked += mask[4 * static_cast<int64_t>(quad) + i];
        mask[4 * static_cast<int64_t>(quad) + i] = 0;
      }
    }
  });
  return found;
}

// The key of a position, relative to a power of two near the mean of the weights.
template <bool Whole>
struct ScaledKeys {
  const Weights& weights;
  RandomRow random;
  float scale;

  __device__ __forceinline__ float weight(uint32_t l) const {
    // of a whole row only positions that the flags allow are asked for
    return Whole ? __ldg(static_cast<const float*>(weights.data) + weights.first + l) : weights[l];
  }
  __device__ __forceinline__ float operator()(uint32_t l) const {
    const float x = weight(l);
    const float key = standard_exponential(uniform(random.word(l))) / ((x + weights.eps) * scale);
    return drawable(x, weights.eps) ? key : INFINITY;
  }
};

// The same where weights have an exponent: relative to the largest.
template <bool Whole>
struct SharpKeys {
  ScaledKeys<Whole> keys;
  float largest, power;

  __device__ __forceinline__ float operator()(uint32_t l) const {
    const float x = keys.weight(l), eps = keys.weights.eps;
    const float key = standard_exponential(uniform(keys.random.word(l))) /
                      relative_weight(x, largest, eps, power);
    return drawable(x, eps) ? key : INFINITY;
  }
};

// The exponent of the weights, as one warp's sample has it.
template <int N>
__device__ Sharpening sharpening_of(const float (&sample)[N], float eps, float power) {
  float largest = -1.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) largest = fmaxf(largest, sample[i]);
  for (int step = kWarp / 2; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  const float shift = -power * logarithm_of_two(largest + eps);
  // A logarithm and a power are each off by 2^-22.6 of themselves or of 1, twice; what that changes
  // in a probability is at most 1 / e of it, and numbers in between are below 2^126.
  return {eps, power, shift, kRoom + 2e-7f * (128.0f + fabsf(shift))};
}

template <int N>
__device__ __forceinline__ void sharpen(float (&sample)[N], const Sharpening& sharp) {
#pragma unroll
  for (int i = 0; i < N; ++i) sample[i] = sample[i] >= 0.0f ? sharp(sample[i]) : -1.0f;
}

// What a row's sample tells, in shared memory.
struct Sampled {
  Interval interval;
  Sharpening sharp;
  bool everything;
  unsigned infinite;  // of several threads that find one
  float largest[kRaceThreads / kWarp];
};

template <bool Whole, bool Flagged, bool Sharp>
__device__ __forceinline__ void look_at_sample(const Quads<Whole, Flagged>& quads, int k,
                                               float power, Sampled& sampled) {
  const float eps = quads.weights.eps, length = static_cast<float>(quads.positions);
  float sample[4 * kSampleQuads];
  if (threadIdx.x < kWarp) {  // share: 1 / warps
    take_sample(quads, kWarp, sample);
    Sharpening sharp{eps, power, 0.0f, kRoom};
    if constexpr (Sharp) {
      sharp = sharpening_of(sample, eps, power);
      sharpen(sample, sharp);
    }
    const Interval it =
        likely_interval<true>(sample, {0.0f, 0.0f, length}, Sharp ? 0.0f : eps, k, sharp.room);
    if (threadIdx.x == 0) {
      sampled.interval = it;
      sampled.sharp = sharp;
      sampled.everything = false;
      sampled.infinite = 0;
    }
  }
  __syncthreads();
  if (!sampled.interval.steep) return;
  // phase: sample of a steep row
  // share: steep
  {
    const Interval it = sampled.interval;
    const Sharpening sharp = sampled.sharp;
    take_sample(quads, kRaceThreads, sample);
    if constexpr (Sharp) sharpen(sample, sharp);
    bool everything = false;
    const Interval wide =
        wide_interval(sample, length, Sharp ? 0.0f : eps, k, sharp.room, it, everything);
    __syncthreads();
    if (threadIdx.x == 0) {
      sampled.interval = wide;
      sampled.everything = everything;
    }
    __syncthreads();
  }
}

// False where the row has to be drawn by all keys.
template <bool Whole, bool Flagged, bool Sharp>
__device__ __forceinline__ bool draw_in_one_pass(const Weights& weights, int64_t positions, int k,
                                                 const RandomRow& random, float power,
                                                 const Candidates& candidates, uint8_t* mask) {
  __shared__ Sampled sampled;
  const Quads<Whole, Flagged> quads{weights, positions};
  // phase: sample and interval
  look_at_sample<Whole, Flagged, Sharp>(quads, k, power, sampled);
  const Interval it = sampled.interval;
  const Sharpening sharp = sampled.sharp;
  if (!it.known || !(sharp.room < kMostRoom)) return false;
  if (sampled.everything) {
    // share: 0
    const unsigned all = mark_all(quads, mask);
    if (all <= static_cast<unsigned>(k)) return true;
  }
  // phase: pass

  Sifted sifted;
  if (it.steep) {
    // share: steep
    sifted = sift_row<Way<true, Whole, Flagged, Sharp>>(quads, it, sharp, random, candidates, mask);
  } else {
    // share: 1 - steep
    sifted =
        sift_row<Way<false, Whole, Flagged, Sharp>>(quads, it, sharp, random, candidates, mask);
  }
  unsigned marked = sifted.marked;
  if (sifted.largest == INFINITY) atomicOr(&sampled.infinite, 1u);
  if constexpr (Sharp) {
    float largest = sifted.largest;
    for (int step = kWarp / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    if (threadIdx.x % kWarp == 0) sampled.largest[threadIdx.x / kWarp] = largest;
  }
  __syncthreads();
  if (sampled.infinite) {
    // share: infinite
    const Infinite found = take_back_infinite(quads, mask);
    marked -= found.marked;
    if constexpr (Sharp) sifted.largest = block_reduce(found.largest, Max());
  } else if constexpr (Sharp) {
    sifted.largest = sampled.largest[0];
#pragma unroll
    for (int warp = 1; warp < kRaceThreads / kWarp; ++warp)
      sifted.largest = fmaxf(sifted.largest, sampled.largest[warp]);
  }
  // phase: candidates
  const int count = list_flagged(candidates.flags, candidates.words, candidates.position,
                                 candidates.most, marked);
  if (count > candidates.most) return false;
  const int wanted = k - static_cast<int>(marked);
  const ScaledKeys<Whole> keys{weights, random, it.scale};
  if constexpr (!Sharp) {
    return mark_smallest(candidates, count, wanted, it.from, it.to, keys, mask);
  } else {
    // the times of the pass, in the units of the keys
    const float unit =
        it.scale *
        power_of_two(fmaf(power, logarithm_of_two(sifted.largest + weights.eps), sharp.shift));
    if (!(unit > 0.0f && it.to * unit < kLastTime * 1e6f)) return false;
    return mark_smallest(candidates, count, wanted, it.from * unit, it.to * unit,
                         SharpKeys<Whole>{keys, sifted.largest, power}, mask);
  }
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
