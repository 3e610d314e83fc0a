// Attention over scalar values by its exact collapse: a row costs its nonzeros, and no weight is ever written. See
// mam_kernels/value_attention/README.md.
//
// moments_kernel: one block a row. For every slope a, M(a) = sum exp(a x), the mean M'/M and the variance M''/M - (M'/M)^2 in one pass over
// the nonzeros in shared memory. importance_kernel: sum over the chosen slopes of exp(a x) / M(a), which all zeros of a row share.
#include "row.cuh"

namespace mam::cuda {

namespace {

constexpr int kSlopesPerThread = 4;
constexpr int kFold = 64;      // quads of values whose sums are kept in float32 before they join the sums in float64
constexpr int kFirstFold = 4;  // the first is short: its mean becomes the centre of the second
constexpr int kChosenTile = 512;

// What a row's slopes have in common.
struct Summary {
  float lowest, highest;  // of the valid values, zeros included
  int64_t zeros, nonzeros;

  __device__ float shift(float slope) const { return slope >= 0.0f ? slope * highest : slope * lowest; }
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
  int nonzeros = 0;
#pragma unroll 4
  for (int64_t entry = threadIdx.x; entry < row.entries; entry += kRowThreads) {
    const float x = row.value(entry);
    if (x == 0.0f || !row.valid[row.position(entry)]) continue;
    lowest = fminf(lowest, x);
    highest = fmaxf(highest, x);
    ++nonzeros;
  }
  nonzeros = block_reduce(nonzeros, Sum());
  const int64_t zeros = count_valid(row.valid, positions) - nonzeros;
  lowest = block_reduce(zeros > 0 ? fminf(lowest, 0.0f) : lowest, Min());
  highest = block_reduce(zeros > 0 ? fmaxf(highest, 0.0f) : highest, Max());
  return {lowest, highest, zeros, nonzeros};
}

// Sums of the weights, and the weighted mean and squared deviations from it, as they grow. Deviations are taken from the current mean, so
// the variance loses no digits to cancellation, and two such sums merge exactly (Chan, Golub and LeVeque 1979).
struct Running {
  double weight, mean, deviation;

  // Weights, first and second moments about `centre` join.
  __device__ void fold(float centre, float s, float d1, float d2) {
    const double offset = mean - centre, first = weight * offset + d1, second = deviation + weight * offset * offset + d2;
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

// One slope in one thread. Its centre is the mean so far, but before the values that weigh most were met that mean is far from the final
// one. So the zeros and the two extremes, which are known from the start and dominate where the slope is large, count as an anchor of the
// centre.
struct Slope {
  float slope, shift, centre, anchor, anchor_weight;
  float s, d1, d2;
  Running sums;

  // The zeros are counted by one of the threads that share a slope.
  __device__ void start(const Summary& row, float a, bool counts_zeros) {
    slope = a;
    shift = row.shift(a);
    const float of_zeros = row.zeros > 0 ? static_cast<float>(row.zeros) * expf(-shift) : 0.0f;
    const float low = __expf(fmaf(a, row.lowest, -shift)), high = __expf(fmaf(a, row.highest, -shift));
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

// Adds the gathered values to the slopes of this thread, which takes every `lanes`-th quad of them from `lane` on.
__device__ void accumulate(const float* gathered, int count, int lane, int lanes, bool is_first, Slope (&slopes)[kSlopesPerThread]) {
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

__device__ void write_moments(const Slope& slope, bool empty, int64_t index, const Moments& out, float2* normalizer) {
  const float weight = static_cast<float>(slope.sums.weight);
  const float variance = static_cast<float>(slope.sums.deviation / slope.sums.weight);
  out.log_partition[index] = empty ? -INFINITY : slope.shift + logf(weight);
  out.mean[index] = empty ? 0.0f : static_cast<float>(slope.sums.mean);
  out.variance[index] = empty || variance < 0.0f ? 0.0f : variance;
  if (normalizer != nullptr) normalizer[index] = make_float2(empty ? 0.0f : slope.shift, empty ? 0.0f : 1.0f / weight);
}

// A slope is shared by `lanes` threads of a warp, a power of two; a thread works on kSlopesPerThread slopes at a time.
__global__ void __launch_bounds__(kRowThreads, 2)
    moments_kernel(Values values, Flags valid, const float* slope, int64_t num_slopes, int lanes, Moments out, float2* normalizer) {
  __shared__ __align__(16) float gathered[kGathered];
  const Row row = row_of(values, valid, blockIdx.x);
  const Summary summary = summarize(row, values.positions);
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
      for (int step = lanes / 2; step > 0; step /= 2) slopes[i].sums.merge(shuffled(slopes[i].sums, step));
      const int64_t n = first + i * groups + group;
      if (lane == 0 && n < num_slopes) write_moments(slopes[i], summary.empty(), blockIdx.x * num_slopes + n, out, normalizer);
    }
  }
}

// The chosen slopes of a row: weight(x) = exp(slope * x - shift) * scale is the attention to a value.
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

__device__ float attention(const float4& chosen, float x) { return __expf(fmaf(chosen.x, x, -chosen.y)) * chosen.z; }

__device__ float importance_of_zero(const Chosen& chosen) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < chosen.count; i += kRowThreads) sum += expf(-chosen[i].y) * chosen[i].z;
  return block_reduce(sum, Sum());
}

// importance[positions[i]] = the sum of attention(chosen, values[i]), the values two at a time.
__device__ void add_importance(const float* values, const uint32_t* positions, int count, const Chosen& chosen, float* importance) {
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
      if (w < count) importance[positions[w]] = first == 0 ? sum_y : importance[positions[w]] + sum_y;
    }
  }
}

// A block takes `chunk` entries of a row: of a dense row a part, of a CSR row all, since it also fills the positions that are not stored.
__global__ void __launch_bounds__(kRowThreads)
    importance_kernel(Values values, Flags valid, const float* slope, int64_t num_slopes, int64_t heads, const int64_t* latents,
                      int64_t num_chosen, const float2* normalizer, int64_t chunks, int64_t chunk, float* importance) {
  __shared__ float gathered[kGathered];
  __shared__ uint32_t positions[kGathered];
  const int64_t index = blockIdx.x / chunks;
  const Row row = row_of(values, valid, index);
  const Chosen chosen{slope, normalizer + index * num_slopes, latents, heads, num_chosen * heads};
  float* out = importance + index * values.positions;

  const float of_zero = importance_of_zero(chosen);
  const int64_t first = blockIdx.x % chunks * chunk, last = min(first + chunk, values.positions);
  for (int64_t l = first + threadIdx.x; l < last; l += kRowThreads) out[l] = row.valid[l] ? of_zero : 0.0f;
  __syncthreads();

  const int64_t end = values.crow == nullptr ? last : row.entries;
  for (int64_t next = values.crow == nullptr ? first : 0; next < end;) {
    const int count = gather_nonzeros(row, next, end, gathered, positions);
    add_importance(gathered, positions, count, chosen, out);
    __syncthreads();
  }
}

// Threads that share a slope: as many as leave no thread idle where there are few slopes.
int lanes_per_slope(int64_t slopes) {
  int lanes = kWarp;
  while (lanes > 1 && ceil_div(slopes, kSlopesPerThread) * lanes > kRowThreads) lanes /= 2;
  return lanes;
}

void launch_moments(const Values& values, const Flags& valid, const float* slope, int64_t slopes, const Moments& out, float2* normalizer,
                    const Launch& where) {
  launch("value_attention", moments_kernel, values.rows, kRowThreads, 0, where, values, valid, slope, slopes, lanes_per_slope(slopes), out,
         normalizer);
}

constexpr int64_t kDenseChunk = 8 * kRound;

size_t normalizer_bytes(const Values& values, int64_t slopes) { return values.rows * slopes * sizeof(float2); }

}  // namespace

size_t value_workspace(const Values& values, int64_t slopes) {
  return normalizer_bytes(values, slopes) + select_workspace(values.rows, values.positions);
}

void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes, const Moments& out, void*,
                     const Launch& where) {
  launch_moments(values, valid, slope, slopes, out, nullptr, where);
}

void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope, int64_t num_latents, int64_t heads,
                const int64_t* latents, int64_t num_chosen, const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void* workspace, const Launch& where) {
  const int64_t slopes = num_latents * heads;
  float2* normalizer = static_cast<float2*>(workspace);
  launch_moments(values, valid, slope, slopes, out, normalizer, where);

  const int64_t chunk = values.crow == nullptr ? kDenseChunk : values.positions;
  const int64_t chunks = ceil_div(values.positions, chunk);
  launch("value_importance", importance_kernel, values.rows * chunks, kRowThreads, 0, where, values, valid, slope, slopes, heads, latents,
         num_chosen, normalizer, chunks, chunk, importance);

  const Values weights{importance, DType::float32, values.rows, values.positions, values.positions, 1, nullptr, nullptr, false};
  select(weights, maskable, num_masked, draw, weighting, mask, static_cast<char*>(workspace) + normalizer_bytes(values, slopes), where);
}

}  // namespace mam::cuda
