// Rows that read_panel.cuh does not take: many values that are not zero, steep slopes, NaN or
// infinity, no tokens at all. By power series in panels, or where those do not reach by an
// exponential for each value and slope; values pass through shared memory in pieces.
#pragma once

#include "row.cuh"
#include "series.cuh"

namespace mam::cuda {

constexpr int kSlopesPerThread = 2;
constexpr int kFold =
    64;  // quads of values whose sums are kept in float32 before they join the sums in float64
constexpr int kFirstFold = 4;  // the first is short: its mean becomes the centre of the second
constexpr int kChosenTile = 512;

// What a row's slopes have in common.
struct Summary {
  float lowest, highest;  // of the valid values, zeros included
  int64_t zeros, nonzeros;
  bool finite;

  __device__ float shift(float slope) const {
    return slope >= 0.0f ? slope * highest : slope * lowest;
  }
  __device__ bool empty() const { return zeros + nonzeros == 0; }
};

__device__ inline int64_t count_valid(const Attended& valid, int64_t positions) {
  if (valid.all()) return positions;
  return block_reduce(count_flags(valid, positions), Sum());
}

__device__ inline Summary summarize(const Row& row, int64_t positions) {
  float lowest = INFINITY, highest = -INFINITY;
  int nonzeros = 0, infinite = 0;
#pragma unroll 4
  for (int64_t entry = threadIdx.x; entry < row.entries; entry += kRowThreads) {
    const float x = row.value(entry);
    const int64_t position = row.position(entry);
    if (x == 0.0f || position < 0 || !row.valid[position]) continue;
    lowest = fminf(lowest, x);
    highest = fmaxf(highest, x);
    infinite += !isfinite(x);
    ++nonzeros;
  }
  nonzeros = block_reduce(nonzeros, Sum());
  // A column that stands twice in a row must not make their number negative.
  const int64_t zeros = max(count_valid(row.valid, positions) - nonzeros, static_cast<int64_t>(0));
  lowest = block_reduce(zeros > 0 ? fminf(lowest, 0.0f) : lowest, Min());
  highest = block_reduce(zeros > 0 ? fmaxf(highest, 0.0f) : highest, Max());
  return {lowest, highest, zeros, nonzeros, block_reduce(infinite, Sum()) == 0};
}

// Sums of the weights, and the weighted mean and squared deviations from it, as they grow.
// Deviations are taken from the current mean, so the variance loses no digits to cancellation, and
// two such sums merge exactly (Chan, Golub and LeVeque 1979).
struct Running {
  double weight, mean, deviation;

  // Weights, first and second moments about `centre` join.
  __device__ void fold(float centre, float s, float d1, float d2) {
    const double offset = mean - centre, first = weight * offset + d1,
                 second = deviation + weight * offset * offset + d2;
    weight += s;
    if (weight == 0.0) return;
    const double step = first / weight;
    mean = centre + step;
    deviation = second - first * step;
  }

  __device__ void merge(const Running& other) {
    const double total = weight + other.weight;
    if (total == 0.0) return;
    const double apart = other.mean - mean, share = other.weight / total;
    mean += apart * share;
    deviation += other.deviation + apart * apart * weight * share;
    weight = total;
  }
};

__device__ inline Running shuffled(const Running& x, int lanes) {
  return {__shfl_xor_sync(kAllLanes, x.weight, lanes), __shfl_xor_sync(kAllLanes, x.mean, lanes),
          __shfl_xor_sync(kAllLanes, x.deviation, lanes)};
}

// One slope in one thread. Its centre is the mean so far, but before the values that weigh most
// were met that mean is far from the final one. So the zeros and the two extremes, which are known
// from the start and dominate where the slope is large, count as an anchor of the centre.
struct Slope {
  float slope, shift, centre, anchor, anchor_weight;
  float s, d1, d2;
  Running sums;

  // The zeros are counted by one of the threads that share a slope.
  __device__ void start(const Summary& row, float a, bool counts_zeros) {
    slope = a;
    shift = row.shift(a);
    const float of_zeros = row.zeros > 0 ? static_cast<float>(row.zeros) * expf(-shift) : 0.0f;
    const float low = __expf(fmaf(a, row.lowest, -shift)),
                high = __expf(fmaf(a, row.highest, -shift));
    anchor_weight = of_zeros + low + high;
    anchor = centre = (low * row.lowest + high * row.highest) / anchor_weight;
    sums = {counts_zeros ? of_zeros : 0.0, 0.0, 0.0};
    s = d1 = d2 = 0.0f;
  }

  __device__ void add(float x) {
    const float weight = __expf(fmaf(slope, x, -shift)), d = x - centre, weighted = weight * d;
    s += weight;
    d1 += weighted;
    d2 = fmaf(weighted, d, d2);
  }

  __device__ void fold() {
    sums.fold(centre, s, d1, d2);
    const float weight = static_cast<float>(sums.weight), mean = static_cast<float>(sums.mean);
    centre = anchor + (mean - anchor) * (weight / (weight + anchor_weight));
    s = d1 = d2 = 0.0f;
  }
};

// Adds the gathered values to the slopes of this thread, which takes every `lanes`-th quad of them
// from `lane` on.
__device__ inline void accumulate(const float* gathered, int count, int lane, int lanes,
                                  bool is_first, Slope (&slopes)[kSlopesPerThread]) {
  const float4* quads = reinterpret_cast<const float4*>(gathered);
  const int full = count / 4;
  for (int quad = lane; quad < full;) {
    const int stop = min(full, quad + (is_first ? kFirstFold : kFold) * lanes);
    is_first = false;
    for (; quad < stop; quad += lanes) {
      const float4 x = quads[quad];
#pragma unroll
      for (Slope& a : slopes) {
        a.add(x.x);
        a.add(x.y);
        a.add(x.z);
        a.add(x.w);
      }
    }
#pragma unroll
    for (Slope& a : slopes) a.fold();
  }
  for (int i = full * 4 + lane; i < count; i += lanes) {
#pragma unroll
    for (Slope& a : slopes) a.add(gathered[i]);
  }
#pragma unroll
  for (Slope& a : slopes) a.fold();
}

__device__ inline void write_moments(const Slope& slope, bool empty, int64_t index,
                                     const Moments& out, float2* normalizer) {
  const float weight = static_cast<float>(slope.sums.weight);
  const float variance = static_cast<float>(slope.sums.deviation / slope.sums.weight);
  if (out.log_partition != nullptr)
    out.log_partition[index] = empty ? -INFINITY : slope.shift + logf(weight);
  out.mean[index] = empty ? 0.0f : static_cast<float>(slope.sums.mean);
  out.variance[index] = empty || variance < 0.0f ? 0.0f : variance;
  if (normalizer != nullptr)
    *normalizer = make_float2(empty ? 0.0f : slope.shift, empty ? 0.0f : 1.0f / weight);
}

// A slope is shared by `lanes` threads of a warp, a power of two; a thread works on
// kSlopesPerThread slopes at a time.
__device__ inline void moments_directly(const Row& row, const Summary& summary, const float* slope,
                                        int64_t num_slopes, int lanes, float* gathered,
                                        const Moments& out, int64_t index, float2* normalizer) {
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = kRowThreads / lanes;
  for (int64_t first = 0; first < num_slopes; first += groups * kSlopesPerThread) {
    Slope slopes[kSlopesPerThread];
#pragma unroll
    for (int i = 0; i < kSlopesPerThread; ++i) {
      const int64_t n = first + i * groups + group;
      slopes[i].start(summary, n < num_slopes ? slope[n] : 0.0f, lane == 0);
    }
    for (int64_t next = 0; next < row.entries;) {
      const bool is_first = next == 0;
      const int count = gather_nonzeros(row, next, row.entries, gathered, nullptr);
      accumulate(gathered, count, lane, lanes, is_first, slopes);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kSlopesPerThread; ++i) {
      for (int step = lanes / 2; step > 0; step /= 2)
        slopes[i].sums.merge(shuffled(slopes[i].sums, step));
      const int64_t n = first + i * groups + group;
      if (lane == 0 && n < num_slopes)
        write_moments(slopes[i], summary.empty(), index + n, out,
                      normalizer == nullptr ? nullptr : normalizer + n);
    }
  }
}

// The chosen slopes, and what becomes of them.
struct Deciding {
  const int64_t* latents;
  int64_t count, heads;

  __device__ int64_t slope(int64_t i) const { return latents[i / heads] * heads + i % heads; }
};

__device__ inline double wide_slope(float slope) {
  return slope + slope * 0.0;
}  // an infinite slope has no softmax

__device__ inline void moments_by_series(const Row& row, const Summary& summary,
                                         const Series& series, const float* slope,
                                         int64_t num_slopes, float* gathered, double* partial,
                                         double* sums, const Moments& out, int64_t first_index) {
  for (int i = threadIdx.x; i < series.panels * kMaxOrder; i += kRowThreads) sums[i] = 0.0;
  __syncthreads();
  for (int64_t next = 0; next < row.entries;) {
    const int count = gather_nonzeros(row, next, row.entries, gathered, nullptr);
    add_values(gathered, count, series, partial, sums);
  }
  add_zeros(summary.zeros, series, sums);
  __syncthreads();
  for (int64_t n = threadIdx.x; n < num_slopes; n += kRowThreads) {
    const double alpha = wide_slope(slope[n]);
    const SeriesMoments total = moments_of(series, sums, alpha * series.half);
    const double mean = total.m1 / total.m, variance = total.m2 / total.m - mean * mean;
    const int64_t index = first_index + n;
    if (out.log_partition != nullptr)
      out.log_partition[index] = static_cast<float>(alpha * series.centre() + log(total.m));
    out.mean[index] = static_cast<float>(series.centre() + mean * series.half);
    out.variance[index] =
        static_cast<float>((variance < 0.0 ? 0.0 : variance) * series.half * series.half);
  }
}

// The series of the importance in each panel.
__device__ inline void write_shares(const Series& series, const float* slope,
                                    const Deciding& deciding, const double* sums, double* partial,
                                    double* shares) {
  for (int i = threadIdx.x; i < series.panels * kMaxOrder; i += kRowThreads) shares[i] = 0.0;
  __syncthreads();
  const int64_t count = deciding.count * deciding.heads;
  for (int64_t first = 0; first < count; first += kRowThreads) {
    const int64_t i = first + threadIdx.x;
    const double y[1] = {i < count ? wide_slope(slope[deciding.slope(i)]) * series.half : 0.0};
    const double weight = i < count ? 1.0 / moments_of(series, sums, y[0]).m : 0.0;
    for (int panel = 0; panel < series.panels; ++panel) {
      double term[1] = {weight * exp(y[0] * (2 * panel + 1 - series.panels))};
      add_power_sums(term, y, series.order, partial, shares + panel * kMaxOrder);
    }
  }
}

// The chosen slopes of a row: weight(x) = exp(slope * x - shift) * scale is the attention to a
// value.
struct Chosen {
  const float* slope;
  const float2* normalizer;  // of this row: shift and 1 / sum
  const int64_t* latents;
  int64_t heads, count;

  __device__ float4 operator[](int64_t i) const {
    const int64_t n = latents[i / heads] * heads + i % heads;
    return make_float4(slope[n], normalizer[n].x, normalizer[n].y, 0.0f);
  }
};

__device__ inline float attention(const float4& chosen, float x) {
  return __expf(fmaf(chosen.x, x, -chosen.y)) * chosen.z;
}

__device__ inline float importance_of_zero(const Chosen& chosen) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < chosen.count; i += kRowThreads)
    sum += expf(-chosen[i].y) * chosen[i].z;
  return block_reduce(sum, Sum());
}

// importance[positions[i]] = the sum of attention(chosen, values[i]), the values two at a time.
__device__ inline void add_importance(const float* values, const uint32_t* positions, int count,
                                      const Chosen& chosen, float4* tile, float* importance) {
  for (int64_t first = 0; first < chosen.count; first += kChosenTile) {
    const int size = static_cast<int>(min(chosen.count - first, static_cast<int64_t>(kChosenTile)));
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += kRowThreads) tile[i] = chosen[first + i];
    __syncthreads();
    for (int v = threadIdx.x; v < count; v += 2 * kRowThreads) {
      const int w = v + kRowThreads;
      const float x = values[v], y = w < count ? values[w] : 0.0f;
      float sum_x = 0.0f, sum_y = 0.0f;
#pragma unroll 4
      for (int i = 0; i < size; ++i) {
        sum_x += attention(tile[i], x);
        sum_y += attention(tile[i], y);
      }
      importance[positions[v]] = first == 0 ? sum_x : importance[positions[v]] + sum_x;
      if (w < count)
        importance[positions[w]] = first == 0 ? sum_y : importance[positions[w]] + sum_y;
    }
  }
}

// Memory of a block for a general row.
struct GeneralMemory {
  float gathered[kGathered];
  uint32_t positions[kGathered];
  union {
    struct {
      double partial[kRowWarps * kMaxOrder], sums[kMaxPanels * kMaxOrder],
          shares[kMaxPanels * kMaxOrder];
    };
    float4 tile[kChosenTile];
  };
};

// Moments of a row into out, at `index`; its importance where `importance` is not null.
// `normalizer` holds a number for each slope of the row where the importance is asked for. Ends in
// a barrier.
__device__ void general_row(const Row& row, int64_t positions, const float* slope,
                            int64_t num_slopes, float steepest, const Moments& out, int64_t index,
                            const Deciding& deciding, float2* normalizer, float* importance,
                            GeneralMemory& memory) {
  const Summary summary = summarize(row, positions);
  Series series{0.0, 0.0, 0, 0};
  if (summary.finite && !summary.empty())
    series = plan_series(summary.lowest, summary.highest, steepest);
  if (series.panels == 0) {
    int lanes = kWarp;
    while (lanes > 1 &&
           (num_slopes + kSlopesPerThread - 1) / kSlopesPerThread * lanes > kRowThreads)
      lanes /= 2;
    moments_directly(row, summary, slope, num_slopes, lanes, memory.gathered, out, index,
                     normalizer);
  } else {
    moments_by_series(row, summary, series, slope, num_slopes, memory.gathered, memory.partial,
                      memory.sums, out, index);
  }
  __syncthreads();
  if (importance == nullptr) return;
  const Chosen chosen{slope, normalizer, deciding.latents, deciding.heads,
                      deciding.count * deciding.heads};
  float of_zero;
  if (series.panels > 0) {
    write_shares(series, slope, deciding, memory.sums, memory.partial, memory.shares);
    of_zero = static_cast<float>(evaluate(series, memory.shares, 0.0));
  } else {
    of_zero = importance_of_zero(chosen);
  }
  for (int64_t l = threadIdx.x; l < positions; l += kRowThreads)
    importance[l] = row.valid[l] ? of_zero : 0.0f;
  __syncthreads();
  for (int64_t next = 0; next < row.entries;) {
    const int count = gather_nonzeros(row, next, row.entries, memory.gathered, memory.positions);
    if (series.panels > 0) {
      for (int v = threadIdx.x; v < count; v += kRowThreads)
        importance[memory.positions[v]] =
            static_cast<float>(evaluate(series, memory.shares, memory.gathered[v]));
    } else {
      add_importance(memory.gathered, memory.positions, count, chosen, memory.tile, importance);
    }
    __syncthreads();
  }
}

}  // namespace mam::cuda
