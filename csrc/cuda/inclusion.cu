// Inclusion probabilities: one block a row. A sample of the weights tells the time of the race at
// which about as many positions have arrived as are drawn; a pass over the row at that time tells
// how many have and the series of that number about the time, which leads to the exact one. Nearly
// always one such pass is enough. Derivation: mam_kernels/ops/inclusion.
#include "block.cuh"
#include "launch.cuh"
#include "mam/arrivals.h"
#include "mam/keys.h"
#include "memory.cuh"
#include "weights.cuh"

namespace mam::cuda {

namespace {

constexpr int kThreads = kRaceThreads, kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // rows at a time: left alone, the assembler spills two registers for 7
constexpr float kFurthest = 87.0f;  // beyond it exp(-u) counts as 0
constexpr int kMostPasses = 100;

struct Math {
  __device__ static double log(double x) { return ::log(x); }
  __device__ static double exp(double x) { return ::exp(x); }
  __device__ static double sqrt(double x) { return ::sqrt(x); }
};

// exp(-u) of u in [0, kFurthest] to 2e-7, and exp(-u) - 1 likewise where u is below log(2) / 2, not
// late.
struct Decay {
  float power, less_one;  // exp(-u) = power + power less_one
  bool late;

  __device__ __forceinline__ float left() const { return fmaf(power, less_one, power); }
  // 1 - exp(-u), to 2e-7 of itself
  __device__ __forceinline__ float arrived() const { return fmaf(-power, less_one, 1.0f - power); }
};

__device__ __forceinline__ Decay decay(float u) {
  // exp(-u) = 2^n e^r; the sum's last bits are the integer n
  const float shifted = u * -0x1.715476p+0f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const float r = (-u - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, error 1.4e-9
  float tail = 0.00139336669f + 0.000198910096f * r;
  tail = 0.04166646477f + r * (0.008333310909f + r * tail);
  tail = 0.5000000013f + r * (0.1666666668f + r * tail);
  return {__uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)), r + r * r * tail,
          n < 0.0f};
}

// Weight times time, u, in two factors: the time of small weights is beyond float32. Where a
// position cannot be drawn it is 0, and elsewhere in [least, kFurthest].
struct Scaled {
  float coarse, fine, least;

  __device__ Scaled(double time, double smallest)
      : coarse(static_cast<float>(::sqrt(time))),
        fine(time > 0.0 ? static_cast<float>(time / static_cast<double>(coarse)) : 0.0f),
        least(static_cast<float>(smallest * time)) {}

  __device__ __forceinline__ float operator()(float weight) const {
    return drawn(weight) ? fminf(fmaxf(weight * coarse * fine, least), kFurthest) : 0.0f;
  }
  __device__ static __forceinline__ bool drawn(float weight) {
    return weight > 0.0f && weight < INFINITY;
  }
};

// What a pass finds besides the arrivals.
struct Survey {
  int drawable;
  float largest;  // weight that can be drawn
};

// A position counts as 1, less exp(-u), where u is large; else it adds 1 - exp(-u).
template <bool Whole, bool Flagged>
__device__ Arrivals arrivals(const Quads<Whole, Flagged>& quads, const Scaled& scaled,
                             Survey& survey) {
  int late = 0, drawable = 0;
  float largest = 0.0f, sums[kArrivalTerms + 1] = {};
  // trips: L / (16 * threads) | 0
  for_each_quad(quads, [&](int, const float (&weight)[4], uint32_t allowed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float w = allowed >> (8 * i) & 1u ? weight[i] : 0.0f;
      if (Scaled::drawn(w)) {
        ++drawable;
        largest = fmaxf(largest, w);
      }
      const float u = scaled(w);
      const Decay now = decay(u);
      late += now.late;
      sums[0] += now.late ? now.left() : now.less_one;
      float product = u * now.left();
#pragma unroll
      for (int j = 1; j <= kArrivalTerms; ++j) {
        sums[j] += product;
        product *= u;
      }
    }
  });
  survey.drawable = block_reduce_of<kWarps>(drawable, Sum());
  survey.largest = block_reduce_of<kWarps>(largest, Max());
  Arrivals found;
  found.late = static_cast<double>(block_reduce_of<kWarps>(late, Sum()));
  found.rest = block_reduce_of<kWarps>(static_cast<double>(sums[0]), Sum());
#pragma unroll
  for (int j = 0; j < kArrivalTerms; ++j)
    found.term[j] = block_reduce_of<kWarps>(static_cast<double>(sums[j + 1]), Sum());
  return found;
}

// About the time of the k-th arrival, as the draw's sample tells it; 0 where it does not.
template <bool Whole, bool Flagged>
__device__ __forceinline__ double sampled_time(const Quads<Whole, Flagged>& quads, int k) {
  __shared__ double time;
  if (threadIdx.x < kWarp) {  // share: 1 / warps
    float sample[4 * kSampleQuads];
    take_sample(quads, kWarp, sample);
    const Population row{0.0f, 0.0f, static_cast<float>(quads.positions)};
    const Interval it = likely_interval<true>(sample, row, 0.0f, k, kRoom);
    if (threadIdx.x == 0) time = static_cast<double>(it.time) * static_cast<double>(it.scale);
  }
  __syncthreads();
  return time;
}

// The time at which `count` positions are expected, infinite where there are no more; `smallest`
// becomes the least that a weight counts as.
template <bool Whole, bool Flagged>
__device__ double solved_time(const Quads<Whole, Flagged>& quads, double count, double time,
                              double& smallest) {
  constexpr double kEarly = 1e-6, kNegligible = 1e-9;
  TimeSought sought{count, 0.0, 0.0, kInfiniteTime};
  smallest = 0.0;
  for (int pass = 0; pass < kMostPasses; ++pass) {  // trips: passes
    Survey survey;
    const Arrivals now = arrivals(quads, Scaled(time, smallest), survey);
    if (pass == 0) {
      sought.drawable = static_cast<double>(survey.drawable);
      if (count >= sought.drawable) return kInfiniteTime;
      if (!(count > 0.0)) return 0.0;
      smallest = static_cast<double>(kSmallestRelativeWeight) * survey.largest;
      // so early that a step leads to where weights alike would be
      if (!(time > 0.0)) time = kEarly / static_cast<double>(survey.largest);
      // this pass did not know the smallest
      if (!(smallest * time * sought.drawable <= kNegligible * now.term[0])) continue;
    }
    const double missing = missing_of(now, count);
    (missing > 0.0 ? sought.low : sought.high) = time;
    double change;
    if (change_by_series(now, missing, &change)) return time * (1.0 + change);
    // share: 1 - 1 / passes
    const double next = further_time<Math>(sought, now, missing, time);
    if (next == time) break;
    time = next;
  }
  return time;
}

template <bool Whole, bool Flagged>
__global__ void __launch_bounds__(kThreads, kBlocks)
    inclusion_kernel(Values values, Flags valid, const int32_t* num_samples, float* probability,
                     double* times) {
  const int64_t row = blockIdx.x, positions = values.positions;
  const Weights weights{
      values.data,          values.dtype, row * values.stride_row, values.stride_position,
      flag_row(valid, row), 0.0f};
  const Quads<Whole, Flagged> quads{weights, positions};
  const int k = max(num_samples[row], 0);
  // phase: sample
  const double first = k > 0 && positions > 0 ? sampled_time(quads, k) : 0.0;
  // phase: pass
  double smallest;
  const double time = solved_time(quads, static_cast<double>(k), first, smallest);
  if (threadIdx.x == 0) times[row] = time;
  // phase: probabilities
  const bool whole = !(time < kInfiniteTime);
  Scaled scaled(whole ? 0.0 : time, smallest);
  if (whole) scaled.least = kFurthest;
  probability += row * positions;
  // trips: 0 | L / (16 * threads)
  for_each_quad(quads, [&](int quad, const float (&weight)[4], uint32_t allowed) {
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[i] = decay(allowed >> (8 * i) & 1u ? scaled(weight[i]) : 0.0f).arrived();
    if constexpr (Whole) {
      reinterpret_cast<float4*>(probability)[quad] = make_float4(p[0], p[1], p[2], p[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (4 * static_cast<int64_t>(quad) + i < positions)
          probability[4 * static_cast<int64_t>(quad) + i] = p[i];
    }
  });
}

template <bool Plain>
__global__ void __launch_bounds__(kThreads)
    inclusion_gradient_kernel(const float* grad, Values values, const float* probability,
                              const double* times, float* grad_weights) {
  const int64_t number = blockIdx.x;
  const int positions = static_cast<int>(values.positions);
  const int64_t first = number * values.stride_row;
  grad += number * values.positions;
  probability += number * values.positions;
  grad_weights += number * values.positions;
  const double time = times[number];
  if (!(time > 0.0 && time < kInfiniteTime)) {
    // share: 0
    for (int l = threadIdx.x; l < positions; l += kThreads) grad_weights[l] = 0.0f;
    return;
  }
  const Scaled factors(time, 0.0);
  const auto scaled = [&](int64_t l) {
    if (!(probability[l] > 0.0f)) return 2.0f * kFurthest;
    const float w = Plain ? __ldg(static_cast<const float*>(values.data) + first + l)
                          : load(values.data, values.dtype, first + l * values.stride_position);
    return w > 0.0f ? w * factors.coarse * factors.fine : 2.0f * kFurthest;
  };
  float products = 0.0f, totals = 0.0f;
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: L / 512 | 0
    const float u = scaled(l);
    if (!(u < kFurthest)) continue;
    const float g = u * decay(u).left();
    products += g > 0.0f ? g * grad[l] : 0.0f;
    totals += g;
  }
  const double total = block_reduce_of<kWarps>(static_cast<double>(totals), Sum());
  const double product = block_reduce_of<kWarps>(static_cast<double>(products), Sum());
  const float average = total > 0.0 ? static_cast<float>(product / total) : 0.0f;
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: 0 | L / 512
    const float u = scaled(l);
    const float half =
        decay(fminf(0.5f * u, kFurthest)).left();  // its square may be beyond float32, as the time
    const float found = (half * factors.coarse * (grad[l] - average)) * (half * factors.fine);
    grad_weights[l] = 0.5f * u < kFurthest ? found : 0.0f;
  }
}

}  // namespace

void inclusion_probabilities(const Values& weights, const Flags& valid, const int32_t* num_samples,
                             float* probability, double* time, const Launch& where) {
  const bool whole = by_fours(weights) && by_fours(valid) && aligned(probability, 16);
  const auto kernel = !whole                  ? inclusion_kernel<false, false>
                      : valid.data == nullptr ? inclusion_kernel<true, false>
                                              : inclusion_kernel<true, true>;
  launch("inclusion_probabilities", kernel, weights.rows, kThreads, 0, where, weights, valid,
         num_samples, probability, time);
}

void inclusion_probabilities_backward(const float* grad, const Values& weights,
                                      const float* probability, const double* time,
                                      float* grad_weights, const Launch& where) {
  const bool plain = weights.dtype == DType::float32 && weights.stride_position == 1;
  launch("inclusion_probabilities_backward",
         plain ? inclusion_gradient_kernel<true> : inclusion_gradient_kernel<false>, weights.rows,
         kThreads, 0, where, grad, weights, probability, time, grad_weights);
}

}  // namespace mam::cuda
