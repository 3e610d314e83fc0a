// Inclusion probabilities: one block a row. A pass over the weights at one time of the race tells
// how many positions have arrived and the series of that number about the time, which leads to the
// next time; nearly always the second pass is the last. Derivation: mam_kernels/ops/inclusion.
#include "block.cuh"
#include "launch.cuh"
#include "mam/arrivals.h"
#include "mam/keys.h"
#include "memory.cuh"

namespace mam::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr float kFurthest = 87.0f;  // beyond it exp(-u) counts as 0
constexpr int kMostPasses = 100;

struct Math {
  __device__ static double log(double x) { return ::log(x); }
  __device__ static double exp(double x) { return ::exp(x); }
  __device__ static double sqrt(double x) { return ::sqrt(x); }
};

// exp(-u) of u >= 0 to 2e-7, and exp(-u) - 1 likewise where u is below log(2) / 2, not late.
struct Decay {
  float left, less_one;
  bool late;
};

__device__ __forceinline__ Decay decay(float u) {
  u = fminf(u, kFurthest);
  const float n = floorf(u * 0x1.715476p+0f + 0.5f);
  const float r = (n * 0x1.62e4p-1f - u) + n * 0x1.7f7d1cp-20f;
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, error 1.4e-9
  float tail = 0.00139336669f + 0.000198910096f * r;
  tail = 0.04166646477f + r * (0.008333310909f + r * tail);
  tail = 0.5000000013f + r * (0.1666666668f + r * tail);
  const float less_one = r + r * r * tail;
  const float power = __uint_as_float(static_cast<uint32_t>(127 - static_cast<int>(n)) << 23);
  return {power + power * less_one, less_one, n > 0.0f};
}

// Float32 of stride 1, all of them valid.
bool plain(const Values& weights, const Flags& valid) {
  return weights.dtype == DType::float32 && weights.stride_position == 1 && valid.data == nullptr;
}

// The weights of one row; -1 where a position cannot be drawn.
template <bool Plain>
struct WeightsOfRow {
  const void* data;
  DType dtype;
  int64_t first, stride;
  FlagRow valid;
  float coarse, fine;  // 1 / the largest weight

  __device__ float weight(int64_t position) const {
    if constexpr (Plain) {
      const float w = __ldg(static_cast<const float*>(data) + first + position);
      return drawable(w, 0.0f) ? w : -1.0f;
    } else {
      const float w = load(data, dtype, first + position * stride);
      return valid[position] && drawable(w, 0.0f) ? w : -1.0f;
    }
  }
  // As in the draw. The reciprocal of a small weight is beyond float32, so it is in two factors.
  __device__ float relative(float w) const {
    return w < 0.0f ? 0.0f : fmaxf(w * coarse * fine, kSmallestRelativeWeight);
  }
  __device__ void divide_by(float largest) {
    const double root = ::sqrt(static_cast<double>(largest));
    coarse = static_cast<float>(1.0 / root);
    fine = static_cast<float>(1.0 / (static_cast<double>(largest) * coarse));
  }
};

// A position counts as 1, less exp(-u), where u is large; else it adds 1 - exp(-u).
template <bool Plain>
__device__ Arrivals arrivals(const WeightsOfRow<Plain>& row, int positions, float time) {
  int late = 0;
  float sums[kArrivalTerms + 1] = {};
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: L / 512 | 0
    const float u = row.relative(row.weight(l)) * time;
    const Decay now = decay(u);
    late += now.late;
    sums[0] += now.late ? now.left : now.less_one;
    float product = u < kFurthest ? u * now.left : 0.0f;
    const float factor = fminf(u, kFurthest);
#pragma unroll
    for (int j = 1; j <= kArrivalTerms; ++j) {
      sums[j] += product;
      product *= factor;
    }
  }
  Arrivals found;
  found.late = static_cast<double>(block_reduce_of<kWarps>(late, Sum()));
  found.rest = block_reduce_of<kWarps>(static_cast<double>(sums[0]), Sum());
#pragma unroll
  for (int j = 0; j < kArrivalTerms; ++j)
    found.term[j] = block_reduce_of<kWarps>(static_cast<double>(sums[j + 1]), Sum());
  return found;
}

template <bool Plain>
__device__ double solved_time(const WeightsOfRow<Plain>& row, int positions, TimeSought sought,
                              double time) {
  for (int pass = 0; pass < kMostPasses; ++pass) {  // trips: passes
    const Arrivals now = arrivals(row, positions, static_cast<float>(time));
    const double missing = missing_of(now, sought.count);
    (missing > 0.0 ? sought.low : sought.high) = time;
    double change;
    if (change_by_series(now, missing, &change)) return time * (1.0 + change);
    const double next = further_time<Math>(sought, now, missing, time);
    if (next == time) break;
    time = next;
  }
  return time;
}

template <bool Plain>
__global__ void __launch_bounds__(kThreads)
    inclusion_kernel(Values values, Flags valid, const int32_t* num_samples, float* probability,
                     double* times) {
  const int64_t number = blockIdx.x;
  const int positions = static_cast<int>(values.positions);
  WeightsOfRow<Plain> row{values.data,
                          values.dtype,
                          number * values.stride_row,
                          values.stride_position,
                          flag_row(valid, number),
                          0.0f,
                          0.0f};
  probability += number * values.positions;
  float largest = -1.0f;
  int there = 0;
  double sum = 0.0;
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: L / 512 | 0
    const float w = row.weight(l);
    largest = fmaxf(largest, w);
    there += w >= 0.0f;
    sum += static_cast<double>(fmaxf(w, 0.0f));
  }
  largest = block_reduce_of<kWarps>(largest, Max());
  if (!(largest > 0.0f)) largest = 1.0f;
  row.divide_by(largest);
  const double all = static_cast<double>(block_reduce_of<kWarps>(there, Sum()));
  const double mean = block_reduce_of<kWarps>(sum, Sum()) / static_cast<double>(largest) / all;
  const double count = static_cast<double>(max(num_samples[number], 0));

  const bool whole = count >= all;
  double time = 0.0;
  if (count > 0.0 && !whole)  // from where weights alike would have it
    time = solved_time(row, positions, {count, all, 0.0, kInfiniteTime},
                       ::log(all / (all - count)) / mean);
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: 0 | L / 512
    const float w = row.weight(l);
    const Decay now = decay(row.relative(w) * static_cast<float>(time));
    const float p = now.late ? 1.0f - now.left : -now.less_one;
    probability[l] = w < 0.0f ? 0.0f : whole ? 1.0f : p;
  }
  if (threadIdx.x == 0) times[number] = whole ? kInfiniteTime : time / static_cast<double>(largest);
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
  // in two factors, since the time of small weights is beyond float32
  const float coarse = static_cast<float>(::sqrt(time)),
              fine = static_cast<float>(time / static_cast<double>(coarse));
  const auto scaled = [&](int64_t l) {
    if (!(probability[l] > 0.0f)) return 2.0f * kFurthest;
    const float w = Plain ? __ldg(static_cast<const float*>(values.data) + first + l)
                          : load(values.data, values.dtype, first + l * values.stride_position);
    return w * coarse * fine;
  };
  float products = 0.0f, totals = 0.0f;
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: L / 512 | 0
    const float u = scaled(l);
    if (!(u < kFurthest)) continue;
    const float g = u * decay(u).left;
    products += g > 0.0f ? g * grad[l] : 0.0f;
    totals += g;
  }
  const double total = block_reduce_of<kWarps>(static_cast<double>(totals), Sum());
  const double product = block_reduce_of<kWarps>(static_cast<double>(products), Sum());
  const float average = total > 0.0 ? static_cast<float>(product / total) : 0.0f;
#pragma unroll 4
  for (int l = threadIdx.x; l < positions; l += kThreads) {  // trips: 0 | L / 512
    const float u = scaled(l);
    const float half = decay(0.5f * u).left;  // its square may be beyond float32, as the time
    const float found = (half * coarse * (grad[l] - average)) * (half * fine);
    grad_weights[l] = 0.5f * u < kFurthest ? found : 0.0f;
  }
}

}  // namespace

void inclusion_probabilities(const Values& weights, const Flags& valid, const int32_t* num_samples,
                             float* probability, double* time, const Launch& where) {
  launch("inclusion_probabilities",
         plain(weights, valid) ? inclusion_kernel<true> : inclusion_kernel<false>, weights.rows,
         kThreads, 0, where, weights, valid, num_samples, probability, time);
}

void inclusion_probabilities_backward(const float* grad, const Values& weights,
                                      const float* probability, const double* time,
                                      float* grad_weights, const Launch& where) {
  launch("inclusion_probabilities_backward",
         plain(weights, {}) ? inclusion_gradient_kernel<true> : inclusion_gradient_kernel<false>,
         weights.rows, kThreads, 0, where, grad, weights, probability, time, grad_weights);
}

}  // namespace mam::cuda
