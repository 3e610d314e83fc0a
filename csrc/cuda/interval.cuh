// Where the k-th key of a row lies, told from a sample of its weights, and on which side of that a
// position's key is, told from its random word without computing the key. Derivation and bounds:
// mam_kernels/ops/selection/README.md.
#pragma once

#include "block.cuh"
#include "intrinsics.cuh"
#include "race.cuh"

namespace mam::cuda {

constexpr int kSampleQuads = 4;  // of each lane of a warp
constexpr int kSample = 4 * kSampleQuads * kWarp;
constexpr int kFewestSampled = 1024;  // shorter rows are drawn by all keys
constexpr float kDeviations = 4.5f, kSlack = 2.0f;
constexpr float kLastTime = 1e20f;   // keys of weights that count as more than they are come later
constexpr float kRoom = 4e-6f;       // more than everything that rounds comes to, as a part of 1
constexpr float kMostRoom = 1e-3f;   // beyond it a row is drawn by all keys
constexpr float kMostSlop = 0.004f;  // part of the row that a tangent may leave in doubt
constexpr float kLog2e = 1.4426950408889634f;

// The exponent of the weights, 1 / temperature, as the pass over a row has it: (weight + eps)^power
// = 2^(power log2(weight + eps) + shift), relative to the largest weight of the sample. Off by
// `room` at most, as a part of 1, from what the keys are computed from.
struct Sharpening {
  float eps, power, shift, room;

  __device__ __forceinline__ float operator()(float weight) const {
    return power_of_two(fmaf(power, logarithm_of_two(weight + eps), shift));
  }
};

// Weights are multiplied by `scale`, a power of two, so that they are about 1. The k-th of the keys
// E / (scale (weight + eps)) is in [from, to) nearly always. A key is below `from` for sure where
// the uniform is below sat(1 - early_at_zero - early q), with q = 2^(exponent weight), and may be
// below `to` only where it is below sat(late_at_zero - late q). NaN and negative weights give 0,
// and so does infinity where `infinite_is_zero` says so.
//
// Where weights differ much the early curve, a tangent, leaves too many positions in doubt. Such a
// row is `steep`: its early side has a power of two of its own. So is a row of which a sample this
// small does not tell the interval.
struct Interval {
  float scale, from, to;
  float exponent, early_at_zero, early, late_at_zero, late;
  float early_exponent, early_at_eps, surely_at_zero;
  float time, reach;  // about the k-th key, and about how many times later or earlier an end is
  bool known, steep;

  __device__ __forceinline__ float decay(float weight) const {
    return power_of_two(exponent * weight);
  }
  __device__ __forceinline__ float surely(float q) const {
    return __saturatef(fmaf(-early, q, early_at_zero));
  }
  __device__ __forceinline__ float surely_steep(float weight) const {
    return __saturatef(fmaf(-early_at_eps, power_of_two(early_exponent * weight), surely_at_zero));
  }
  __device__ __forceinline__ float perhaps(float q) const {
    return __saturatef(fmaf(-late, q, late_at_zero));
  }
};

__device__ inline float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Means over the sample: of the probability p = 1 - exp(-time r) that a key is below `time`, of its
// square, and of its derivative.
struct Expected {
  float share, squares, slope;
};

template <int N>
__device__ Expected expected_below(const float (&relative)[N], float time) {
  float share = 0.0f, squares = 0.0f, slope = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float q = power_of_two(-kLog2e * time * relative[i]), p = 1.0f - q;
    share += p;
    squares = fmaf(p, p, squares);
    slope = fmaf(relative[i], q, slope);
  }
  constexpr float kEach = 1.0f / (N * kWarp);
  return {kEach * warp_sum(share), kEach * warp_sum(squares), kEach * warp_sum(slope)};
}

// The comparisons of the pass for times [from, to). exp(-from r) = q^g with q = exp(-to r) and
// g = from / to <= 1, which is concave in q: its tangent at `typical` lies above it.
__device__ inline Interval curves(float from, float to, float scale, float eps, float room,
                                  float typical) {
  Interval it{};
  const float g = from / to, power = power_of_two(g * logarithm_of_two(typical));
  it.scale = scale;
  it.from = from;
  it.to = to;
  it.exponent = -kLog2e * to * scale;
  const float at_eps = power_of_two(it.exponent * eps);
  it.surely_at_zero = 1.0f - room;
  it.early_at_zero = it.surely_at_zero - (1.0f - g) * power;
  it.early = at_eps * g * power / typical;
  it.late_at_zero = 1.0f + room;
  it.late = at_eps;
  it.early_exponent = -kLog2e * from * scale;
  it.early_at_eps = power_of_two(it.early_exponent * eps);
  it.known = true;
  return it;
}

// What a row's positions weigh: `common` of them the weight `of_common`, the other `others` what a
// sample tells.
struct Population {
  float common, of_common, others;
};

// How a sample's weights are scaled: by a power of two, so that their mean is about 1. Negative
// ones cannot be drawn.
struct Scaling {
  float drawable, mean, scale;  // drawable: how many positions of the row
  bool sound;
};

template <int N>
__device__ Scaling scaling_of(const float (&weight)[N], const Population& row, float eps) {
  float drawable = 0.0f, total = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    drawable += weight[i] >= 0.0f ? 1.0f : 0.0f;
    total += weight[i] >= 0.0f ? weight[i] + eps : 0.0f;
  }
  const float each = row.others / (N * kWarp);
  drawable = fmaf(warp_sum(drawable), each, row.common);
  total = warp_sum(total) * each;
  if (row.common > 0.0f) total = fmaf(row.of_common + eps, row.common, total);
  const float mean = total / drawable;
  return {drawable, mean, __uint_as_float(0x7F000000u - (__float_as_uint(mean) & 0x7F800000u)),
          mean > 1e-30f && mean < 1e30f};
}

// One warp calls this with the sample's weights, negative where they cannot be drawn; every lane
// gets the result. `known` is false where the sample does not tell the interval; if then `steep` is
// true, a larger one may. Without TellsSteep no row is.
template <bool TellsSteep, int N>
__device__ Interval likely_interval(float (&weight)[N], const Population& row, float eps, int k,
                                    float room) {
  constexpr int kMostSteps = 40;
  constexpr float kEach = 1.0f / (N * kWarp), kNearlyAll = 0.998f;
  Interval unknown{};
  const Scaling scaled = scaling_of(weight, row, eps);
  if (!scaled.sound) return unknown;
  const float drawable = scaled.drawable, scale = scaled.scale;
  const float all = row.common + row.others;
#pragma unroll
  for (int i = 0; i < N; ++i) weight[i] = weight[i] >= 0.0f ? (weight[i] + eps) * scale : 0.0f;
  const float of_common = row.common > 0.0f ? (row.of_common + eps) * scale : 0.0f;
  const float common = row.common / all, others = row.others / all;  // parts of the row

  // The part of those that can be drawn. Of all of them the last key may be at any time.
  const float wanted = (static_cast<float>(k) - 0.5f) / drawable,
              part = wanted < 1.0f ? wanted : kNearlyAll, share = part * drawable / all;
  // The expected share is concave in the time: Newton's method climbs to it from below, from where
  // equal weights would have it.
  float time = -log1pf(-part) / (scaled.mean * scale);
  unknown.scale = scale;
#pragma unroll 1
  for (int step = 0; step < kMostSteps; ++step) {  // trips: newton_steps
    if (!(time > 0.0f && time < kLastTime)) return unknown;
    const Expected sampled = expected_below(weight, time);
    const float q = power_of_two(-kLog2e * time * of_common), p = 1.0f - q;
    const float now = fmaf(common, p, others * sampled.share),
                squares = fmaf(common, p * p, others * sampled.squares),
                slope = fmaf(common, of_common * q, others * sampled.slope);
    if (!(slope > 0.0f)) return unknown;
    // the variance of the share of keys below `time`, given the weights, and that of its
    // expectation, of which there is a sample
    const float within = fmaxf(now - squares, 0.0f) / all,
                spread = sampled.squares - sampled.share * sampled.share,
                between = others * others * kEach * fmaxf(spread, 0.0f);
    const float margin = kDeviations * sqrtf(within + between) + kSlack / all,
                missing = share - now;
    time += missing / slope;
    if (fabsf(missing) > 0.5f * margin) continue;
    const float from = fmaxf(time - margin / slope, 0.0f), guess = time + margin / slope;
    // there the slope is less than the one at `time` promises
    const Expected then = expected_below(weight, guess);
    const float q_then = power_of_two(-kLog2e * guess * of_common);
    const float share_then = fmaf(common, 1.0f - q_then, others * then.share),
                slope_then = fmaf(common, of_common * q_then, others * then.slope);
    const float to = guess + fmaxf(share + margin - share_then, 0.0f) / slope_then;
    unknown.time = time;
    unknown.reach = margin / (slope * time);
    unknown.steep = true;
    if (!(to > from && to < kLastTime && wanted < 1.0f)) return unknown;
    Interval it = curves(from, to, scale, eps, room, fmaxf(1.0f - part, 0.05f));
    if constexpr (!TellsSteep) return it;
    it.time = time;
    it.reach = unknown.reach;
    float slop = 0.0f;  // of the tangent
#pragma unroll
    for (int i = 0; i < N; ++i)
      slop += fmaf(it.early / it.late, power_of_two(-kLog2e * to * weight[i]),
                   it.surely_at_zero - it.early_at_zero - power_of_two(-kLog2e * from * weight[i]));
    const bool bent = slope_then < 0.75f * slope || (from == 0.0f && share > margin);
    it.steep = bent || others * kEach * warp_sum(slop) > kMostSlop;
    return it;
  }
  return unknown;
}

// The sum over the block's sample.
__device__ inline float block_total(float x) {
  __shared__ float partial[kRaceThreads / kWarp];
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kRaceThreads / kWarp; ++warp) total += partial[warp];
  return total;
}

// The interval of a steep row, from a sample four times as large: every thread of the block calls
// this with its part of it. It is as wide as weights of any spread need: a share s of keys below a
// time, which a sample of n weights tells, has a variance of s (1 - s) / n at most. `it` is what
// the smaller sample told; `everything` becomes true where perhaps no time is late enough.
template <int N>
__device__ Interval wide_interval(float (&weight)[N], float positions, float eps, int k, float room,
                                  const Interval& it, bool& everything) {
  constexpr int kMostSteps = 20;
  constexpr float kEach = 1.0f / (N * kRaceThreads), kFurthest = 90.0f;
  constexpr float kLoose = 1.3f;  // of the margin that is needed
  float drawable = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    drawable += weight[i] >= 0.0f ? 1.0f : 0.0f;
    weight[i] = weight[i] >= 0.0f ? (weight[i] + eps) * it.scale : 0.0f;
  }
  drawable = kEach * block_total(drawable);
  const float share = (static_cast<float>(k) - 0.5f) / positions;
  float margin = 0.0f, worst = share;
  for (int twice = 0; twice < 2; ++twice) {  // the variance is that at the ends
    margin = kDeviations * sqrtf(worst * (1.0f - worst) * fmaxf(kEach, 1.0f / positions)) +
             kSlack / positions;
    worst = fminf(fmaxf(0.5f, share - margin), share + margin);
  }
  const float middle = logarithm_of_two(it.time);
  float from = 0.0f, last = INFINITY;
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {  // trips: 2
    // The end is 2^distance times earlier or later than the middle, as far as the share of keys
    // between grows to the margin, or a little more.
    const float sign = side == 0 ? -1.0f : 1.0f;
    float close = 0.0f, far = INFINITY;
    float distance = fminf(fmaxf(it.reach, 1e-3f), 8.0f);
    if (side == 0 ? share < margin : share + margin > drawable) {
      close = far;  // there is no such time
      distance = kFurthest + 1.0f;
    }
#pragma unroll 1
    for (int step = 0; step < kMostSteps && distance < kFurthest; ++step) {  // trips: widenings
      const float time = power_of_two(fmaf(sign, distance, middle));
      float left = 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) left += power_of_two(-kLog2e * time * weight[i]);
      const float between = sign * (1.0f - kEach * block_total(left) - share);
      if (between < margin) {
        close = distance;
        distance = far < INFINITY ? 0.5f * (close + far) : 2.0f * distance;
      } else {
        far = distance;
        if (between < kLoose * margin) break;
        distance = 0.5f * (close + far);
      }
    }
    if (far < kFurthest) (side == 0 ? from : last) = power_of_two(fmaf(sign, far, middle));
  }
  everything = !(last < kLastTime);
  // with the greatest time 2^(-time weight) is a number for every weight
  const float to = fminf(last, fminf(kLastTime, 1e36f / it.scale));
  Interval wide = curves(from, to, it.scale, eps, room, 0.5f);
  wide.known = to > from;
  wide.steep = true;
  return wide;
}

}  // namespace mam::cuda
