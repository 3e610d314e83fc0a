// Attention over scalar values by its exact collapse: a row costs its nonzeros, and no weight is
// ever written. See mam_kernels/ops/value_attention/README.md.
//
// moments_kernel: one block a row. For every slope a, M(a) = sum exp(a x), the mean M'/M and the
// variance M''/M - (M'/M)^2 in one pass over the nonzeros in shared memory: from their power sums,
// or where the series do not reach, by an exponential for each value and slope. importance_kernel:
// sum over the chosen slopes of exp(a x) / M(a), which all zeros of a row share.
#include "row.cuh"
#include "series.cuh"

namespace mam::cuda {

namespace {

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

__device__ int64_t count_valid(const FlagRow& valid, int64_t positions) {
  if (valid.data == nullptr) return positions;
  int64_t count = 0;
  for (int64_t l = threadIdx.x; l < positions; l += kRowThreads) count += valid[l];
  return block_reduce(static_cast<long long>(count), Sum());
}

__device__ Summary summarize(const Row& row, int64_t positions) {
  float lowest = INFINITY, highest = -INFINITY;
  int nonzeros = 0, infinite = 0;
#pragma unroll 4
  for (int64_t entry = threadIdx.x; entry < row.entries; entry += kRowThreads) {
    const float x = row.value(entry);
    if (x == 0.0f || !row.has(row.position(entry))) continue;
    lowest = fminf(lowest, x);
    highest = fmaxf(highest, x);
    infinite += !isfinite(x);
    ++nonzeros;
  }
  nonzeros = block_reduce(nonzeros, Sum());
  const int64_t zeros = count_valid(row.valid, positions) - nonzeros;
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

__device__ Running shuffled(const Running& x, int lanes) {
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
__device__ void accumulate(const float* gathered, int count, int lane, int lanes, bool is_first,
                           Slope (&slopes)[kSlopesPerThread]) {
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

__device__ void write_moments(const Slope& slope, bool empty, int64_t index, const Moments& out,
                              float2* normalizer) {
  const float weight = static_cast<float>(slope.sums.weight);
  const float variance = static_cast<float>(slope.sums.deviation / slope.sums.weight);
  out.log_partition[index] = empty ? -INFINITY : slope.shift + logf(weight);
  out.mean[index] = empty ? 0.0f : static_cast<float>(slope.sums.mean);
  out.variance[index] = empty || variance < 0.0f ? 0.0f : variance;
  if (normalizer != nullptr)
    normalizer[index] = make_float2(empty ? 0.0f : slope.shift, empty ? 0.0f : 1.0f / weight);
}

// A slope is shared by `lanes` threads of a warp, a power of two; a thread works on
// kSlopesPerThread slopes at a time.
__device__ void moments_directly(const Row& row, const Summary& summary, const float* slope,
                                 int64_t num_slopes, int lanes, float* gathered, const Moments& out,
                                 float2* normalizer) {
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
        write_moments(slopes[i], summary.empty(), blockIdx.x * num_slopes + n, out, normalizer);
    }
  }
}

// The chosen slopes, and what becomes of them.
struct Deciding {
  const int64_t* latents;
  int64_t count, heads;
  float2* normalizer;  // (B, N H): shift and 1 / sum, where a row goes directly
  RowSeries* series;   // (B,)

  __device__ int64_t slope(int64_t i) const { return latents[i / heads] * heads + i % heads; }
};

__device__ double wide_slope(float slope) {
  return slope + slope * 0.0;
}  // an infinite slope has no softmax

__device__ void moments_by_series(const Row& row, const Summary& summary, const Series& series,
                                  const float* slope, int64_t num_slopes, float* gathered,
                                  double* partial, double* sums, const Moments& out) {
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
    const int64_t index = blockIdx.x * num_slopes + n;
    out.log_partition[index] = static_cast<float>(alpha * series.centre() + log(total.m));
    out.mean[index] = static_cast<float>(series.centre() + mean * series.half);
    out.variance[index] =
        static_cast<float>((variance < 0.0 ? 0.0 : variance) * series.half * series.half);
  }
}

// The series of the importance in each panel.
__device__ void write_shares(const Series& series, const float* slope, const Deciding& deciding,
                             const double* sums, double* partial, double* shares) {
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

__global__ void __launch_bounds__(kRowThreads, 2)
    moments_kernel(Values values, Flags valid, const float* slope, int64_t num_slopes, int lanes,
                   Moments out, Deciding deciding) {
  __shared__ __align__(16) float gathered[kGathered];
  __shared__ double partial[kRowWarps * kMaxOrder], sums[kMaxPanels * kMaxOrder],
      shares[kMaxPanels * kMaxOrder];
  const Row row = row_of(values, valid, blockIdx.x);
  const Summary summary = summarize(row, values.positions);
  float steepest = 0.0f;
  for (int64_t n = threadIdx.x; n < num_slopes; n += kRowThreads)
    steepest = fmaxf(steepest, isfinite(slope[n]) ? fabsf(slope[n]) : 0.0f);
  steepest = block_reduce(steepest, Max());

  Series series{0.0, 0.0, 0, 0};
  if (summary.finite && !summary.empty())
    series = plan_series(summary.lowest, summary.highest, steepest);
  if (deciding.series != nullptr && threadIdx.x == 0) deciding.series[blockIdx.x].series = series;
  if (series.panels == 0) {
    moments_directly(row, summary, slope, num_slopes, lanes, gathered, out, deciding.normalizer);
    return;
  }
  moments_by_series(row, summary, series, slope, num_slopes, gathered, partial, sums, out);
  if (deciding.series == nullptr) return;
  write_shares(series, slope, deciding, sums, partial, shares);
  double* const kept = deciding.series[blockIdx.x].share;
  for (int i = threadIdx.x; i < series.panels * kMaxOrder; i += kRowThreads) kept[i] = shares[i];
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

__device__ float attention(const float4& chosen, float x) {
  return __expf(fmaf(chosen.x, x, -chosen.y)) * chosen.z;
}

__device__ float importance_of_zero(const Chosen& chosen) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < chosen.count; i += kRowThreads)
    sum += expf(-chosen[i].y) * chosen[i].z;
  return block_reduce(sum, Sum());
}

// importance[positions[i]] = the sum of attention(chosen, values[i]), the values two at a time.
__device__ void add_importance(const float* values, const uint32_t* positions, int count,
                               const Chosen& chosen, float* importance) {
  __shared__ __align__(16) float4 tile[kChosenTile];
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

// A block takes `chunk` entries of a row: of a dense row a part, of a CSR row all, since it also
// fills the positions that are not stored.
__global__ void __launch_bounds__(kRowThreads)
    importance_kernel(Values values, Flags valid, const float* slope, int64_t num_slopes,
                      int64_t heads, const int64_t* latents, int64_t num_chosen,
                      const float2* normalizer, const RowSeries* kept, int64_t chunks,
                      int64_t chunk, float* importance) {
  __shared__ float gathered[kGathered];
  __shared__ uint32_t positions[kGathered];
  __shared__ double share[kMaxPanels * kMaxOrder];
  const int64_t index = blockIdx.x / chunks;
  const Row row = row_of(values, valid, index);
  const Series series = kept[index].series;
  const Chosen chosen{slope, normalizer + index * num_slopes, latents, heads, num_chosen * heads};
  float* out = importance + index * values.positions;

  for (int i = threadIdx.x; i < series.panels * kMaxOrder; i += kRowThreads)
    share[i] = kept[index].share[i];
  __syncthreads();
  const float of_zero = series.panels > 0 ? static_cast<float>(evaluate(series, share, 0.0))
                                          : importance_of_zero(chosen);
  const int64_t first = blockIdx.x % chunks * chunk, last = min(first + chunk, values.positions);
  for (int64_t l = first + threadIdx.x; l < last; l += kRowThreads)
    out[l] = row.valid[l] ? of_zero : 0.0f;
  __syncthreads();

  const int64_t end = values.crow == nullptr ? last : row.entries;
  for (int64_t next = values.crow == nullptr ? first : 0; next < end;) {
    const int count = gather_nonzeros(row, next, end, gathered, positions);
    if (series.panels > 0) {
      for (int v = threadIdx.x; v < count; v += kRowThreads)
        out[positions[v]] = static_cast<float>(evaluate(series, share, gathered[v]));
    } else {
      add_importance(gathered, positions, count, chosen, out);
    }
    __syncthreads();
  }
}

// Threads that share a slope: as many as leave no thread idle where there are few slopes.
int lanes_per_slope(int64_t slopes) {
  int lanes = kWarp;
  while (lanes > 1 && ceil_div(slopes, kSlopesPerThread) * lanes > kRowThreads) lanes /= 2;
  return lanes;
}

void launch_moments(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
                    const Moments& out, const Deciding& deciding, const Launch& where) {
  launch("value_attention", moments_kernel, values.rows, kRowThreads, 0, where, values, valid,
         slope, slopes, lanes_per_slope(slopes), out, deciding);
}

constexpr int64_t kDenseChunk = 8 * kRound;

size_t series_bytes(const Values& values) { return values.rows * sizeof(RowSeries); }

size_t normalizer_bytes(const Values& values, int64_t slopes) {
  return values.rows * slopes * sizeof(float2);
}

}  // namespace

size_t value_workspace(const Values& values, int64_t slopes) {
  return series_bytes(values) + normalizer_bytes(values, slopes) +
         select_workspace(values.rows, values.positions);
}

void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
                     const Moments& out, void*, const Launch& where) {
  launch_moments(values, valid, slope, slopes, out, {}, where);
}

void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope,
                int64_t num_latents, int64_t heads, const int64_t* latents, int64_t num_chosen,
                const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void* workspace,
                const Launch& where) {
  const int64_t slopes = num_latents * heads;
  RowSeries* const series = static_cast<RowSeries*>(workspace);
  float2* const normalizer = reinterpret_cast<float2*>(series + values.rows);
  launch_moments(values, valid, slope, slopes, out,
                 {latents, num_chosen, heads, normalizer, series}, where);

  const int64_t chunk = values.crow == nullptr ? kDenseChunk : values.positions;
  const int64_t chunks = ceil_div(values.positions, chunk);
  launch("value_importance", importance_kernel, values.rows * chunks, kRowThreads, 0, where, values,
         valid, slope, slopes, heads, latents, num_chosen, normalizer, series, chunks, chunk,
         importance);

  const Values weights{importance,       DType::float32,   values.rows,
                       values.positions, values.positions, 1,
                       nullptr,          nullptr,          false};
  select(weights, maskable, num_masked, draw, weighting, mask, normalizer + values.rows * slopes,
         where);
}

}  // namespace mam::cuda
