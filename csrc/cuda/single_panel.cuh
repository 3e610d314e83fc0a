// The moments and the importance of a row whose slopes are served by one power series about the
// middle of its values, of at most 29 terms, and whose nonzeros fit in shared memory: nearly all
// rows. See mam_kernels/ops/value_attention/README.md.
#pragma once

#include <type_traits>

#include "candidates.cuh"
#include "row.cuh"
#include "step.cuh"

namespace mam::cuda {

static_assert(kRowThreads == kRaceThreads, "one block works on a row from values to mask");

// Terms are taken seven at a time: t^(7 g + b) = t^(7 g) t^b, b = 1 ... 7, g = 0 ... giants - 1.
constexpr int kBabies = 7, kMostGiants = 4, kTerms = 1 + kBabies * kMostGiants;
constexpr int kSums = 32;  // kTerms, rounded up

// The largest |slope| times half the width of the row for which so many giants leave an error of
// 1e-11; beyond the last the general way is taken.
__device__ inline int giants_for(float beta) {
  return beta <= 0.0435795f   ? 1
         : beta <= 0.7586586f ? 2
         : beta <= 2.0965113f ? 3
         : beta <= 3.7074885f ? 4
                              : 0;
}

// 1 / j!
__constant__ double kReciprocalFactorial[kSums] = {1.0,
                                                   1.0,
                                                   0.5,
                                                   0.16666666666666666,
                                                   0.041666666666666664,
                                                   0.008333333333333333,
                                                   0.001388888888888889,
                                                   0.0001984126984126984,
                                                   2.48015873015873e-05,
                                                   2.7557319223985893e-06,
                                                   2.755731922398589e-07,
                                                   2.505210838544172e-08,
                                                   2.08767569878681e-09,
                                                   1.6059043836821613e-10,
                                                   1.1470745597729725e-11,
                                                   7.647163731819816e-13,
                                                   4.779477332387385e-14,
                                                   2.8114572543455206e-15,
                                                   1.5619206968586225e-16,
                                                   8.22063524662433e-18,
                                                   4.110317623312165e-19,
                                                   1.9572941063391263e-20,
                                                   8.896791392450574e-22,
                                                   3.868170170630684e-23,
                                                   1.6117375710961184e-24,
                                                   6.446950284384474e-26,
                                                   2.4795962632247976e-27,
                                                   9.183689863795546e-29,
                                                   3.279889237069838e-30,
                                                   1.1309962886447716e-31,
                                                   3.7699876288159054e-33,
                                                   1.216125041553518e-34};

// Shared memory of a row, beside the list.
struct PanelMemory {
  double partial[kRowWarps][kSums];
  double powers[kSums];  // sum over the values of t^j, over j!
  double shares[kSums];  // the importance of a value is the sum over j of shares[j] t^j
  float lowest[kRowWarps], highest[kRowWarps], unsound[kRowWarps];
  unsigned valid[kRowWarps], maskable[kRowWarps];
};

// One row: what is known of it after its values were looked at.
struct Panel {
  double middle, half, reciprocal;  // reciprocal of half, or 0
  int giants;                       // 0: the row is not for this way
  int nonzeros;                     // entries of the list
  int valid, zeros;
  int maskable, maskable_nonzeros;

  __device__ double place(double x) const { return fma(x, reciprocal, -middle * reciprocal); }
};

// Sets a bit for each valid nonzero of a dense row, in the order of position_of; returns how many
// of this thread's positions are valid, where there are flags.
__device__ __forceinline__ unsigned flag_nonzeros(const Row& row, const Whole& whole,
                                                  uint32_t* nonzero, int words) {
  const int count = static_cast<int>((row.positions + 3) / 4);
  const bool flagged = !row.valid.all();
  unsigned total = 0;
  int quad = threadIdx.x;
  if (whole.values && !flagged) {
    const float4* data =
        reinterpret_cast<const float4*>(static_cast<const float*>(row.data) + row.first) + quad;
#pragma unroll 1
    for (int w = threadIdx.x; w < words; w += kRaceThreads) {  // trips: ceil(L / (32 * threads))
      uint32_t word = 0;
      if (quad + (kTurns - 1) * kRaceThreads <
          count) {  // share: L // (32 * threads) / ceil(L / (32 * threads))
        float4 x[kTurns];
#pragma unroll
        for (int i = 0; i < kTurns; ++i) x[i] = __ldg(data + i * kRaceThreads);
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          if (x[i].x != 0.0f) word |= 1u << i;
          if (x[i].y != 0.0f) word |= 1u << (8 + i);
          if (x[i].z != 0.0f) word |= 1u << (16 + i);
          if (x[i].w != 0.0f) word |= 1u << (24 + i);
        }
        quad += kTurns * kRaceThreads;
        data += kTurns * kRaceThreads;
      } else {
#pragma unroll 1
        for (int i = 0; quad < count; ++i, quad += kRaceThreads,
                 data += kRaceThreads) {  // trips: L / (4 * threads) % 8 / ceil(L / (32 * threads))
          const float4 x = __ldg(data);
          uint32_t bits = 0;
          if (x.x != 0.0f) bits |= 1u;
          if (x.y != 0.0f) bits |= 1u << 8;
          if (x.z != 0.0f) bits |= 1u << 16;
          if (x.w != 0.0f) bits |= 1u << 24;
          word |= bits << i;
        }
      }
      nonzero[w] = word;
    }
    return 0;
  }
  // share: 0
  for (int w = threadIdx.x; w < words; w += kRaceThreads) {
    uint32_t word = 0;
#pragma unroll 1
    for (int i = 0; i < kTurns && quad < count; ++i, quad += kRaceThreads) {
      float x[4];
      uint32_t allowed = 0xFFFFFFFFu;
      if (whole.values && whole.valid) {
        const float4 four =
            __ldg(reinterpret_cast<const float4*>(static_cast<const float*>(row.data) + row.first) +
                  quad);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        if (row.valid.valid.data != nullptr)
          allowed =
              bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(row.valid.valid.data) + quad));
        if (row.valid.hidden != nullptr)
          allowed &=
              ~bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(row.valid.hidden) + quad));
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t l = static_cast<int64_t>(quad) * 4 + j;
          const bool there = l < row.positions && row.valid[l];
          x[j] = there ? row.value(l) : 0.0f;
          if (!there) allowed &= ~(255u << (8 * j));
        }
      }
      uint32_t bits = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (x[j] != 0.0f) bits |= 1u << (8 * j);
      word |= (bits & allowed) << i;
      total = sum_of_bytes(allowed & 0x01010101u, total);
    }
    nonzero[w] = word;
  }
  return total;
}

// The list of a dense row: its flagged positions and their values.
__device__ __forceinline__ int list_dense(const uint32_t* nonzero, const Candidates& list,
                                          unsigned& valid) {
  // where: most_flagged = most_nonzero
  return list_flagged(nonzero, list.words, list.position, list.most, valid);
}

// The list of a CSR row, and the bits of its positions; more than `most` where it does not hold
// all.
__device__ inline int list_csr(const Row& row, uint32_t* nonzero, const Candidates& list) {
  for (int w = threadIdx.x; w < list.words; w += kRaceThreads) nonzero[w] = 0;
  int64_t next = 0;
  const int count = gather_nonzeros(row, next, row.entries, list.key, list.position, list.most);
  if (next < row.entries) return list.most + 1;
  for (int i = threadIdx.x; i < count; i += kRaceThreads) flag_position(nonzero, list.position[i]);
  __syncthreads();
  return count;
}

// sum[j] += weight t^j for the terms of so many giants.
__device__ __forceinline__ void add_powers(double weight, double t, int giants,
                                           double (&sum)[kSums]) {
  double baby[kBabies + 1];
  baby[1] = t;
#pragma unroll
  for (int b = 2; b <= kBabies; ++b) baby[b] = baby[b / 2] * baby[b - b / 2];
  double giant = weight;
  sum[0] += weight;
#pragma unroll
  for (int g = 0; g < kMostGiants; ++g) {
    if (g < giants) {
#pragma unroll
      for (int b = 1; b <= kBabies; ++b)
        sum[kBabies * g + b] = fma(giant, baby[b], sum[kBabies * g + b]);
      giant *= baby[kBabies];
    }
  }
}

// The sums over the block, over j! each, into `out`. Ends in a barrier.
__device__ __forceinline__ void gather_powers(const double (&sum)[kSums], PanelMemory& memory,
                                              double* out) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double total[kTerms];
#pragma unroll
  for (int j = 0; j < kTerms; ++j) total[j] = warp_total(sum[j]);
  if (lane == 0) {
#pragma unroll
    for (int j = 0; j < kTerms; ++j) memory.partial[warp][j] = total[j];
  }
  __syncthreads();
  if (threadIdx.x < kTerms) {  // share: 1 / warps
    double whole = 0.0;
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) whole += memory.partial[w][lane];
    out[lane] = whole * kReciprocalFactorial[lane];
  }
  __syncthreads();
}

// A polynomial by Horner's rule, with its first derivative and half its second.
struct Jet {
  double p, p1, p2;
};

template <int N>
__device__ __forceinline__ void jets(const double* coefficient, int giants, const double (&y)[N],
                                     Jet (&jet)[N]) {
  const double highest = coefficient[kBabies * giants];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    jet[i].p = highest;
    jet[i].p1 = jet[i].p2 = 0.0;
  }
#pragma unroll 1
  for (int g = giants - 1; g >= 0; --g) {  // trips: giants
    const double* const c = coefficient + kBabies * g;
#pragma unroll
    for (int b = kBabies - 1; b >= 0; --b) {
      const double next = c[b];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        jet[i].p2 = fma(jet[i].p2, y[i], jet[i].p1);
        jet[i].p1 = fma(jet[i].p1, y[i], jet[i].p);
        jet[i].p = fma(jet[i].p, y[i], next);
      }
    }
  }
}

template <int N>
__device__ __forceinline__ void polynomials(const double* coefficient, int giants,
                                            const double (&y)[N], double (&p)[N]) {
  const double highest = coefficient[kBabies * giants];
#pragma unroll
  for (int i = 0; i < N; ++i) p[i] = highest;
#pragma unroll 1
  for (int g = giants - 1; g >= 0; --g) {  // trips: giants
    const double* const c = coefficient + kBabies * g;
#pragma unroll
    for (int b = kBabies - 1; b >= 0; --b) {
      const double next = c[b];
#pragma unroll
      for (int i = 0; i < N; ++i) p[i] = fma(p[i], y[i], next);
    }
  }
}

// 1 / x for a normal number, to a rounding or two.
__device__ __forceinline__ double reciprocal(double x) {
#ifdef MAM_CUDA_SHIM
  return 1.0 / x;
#else
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  y = fma(y, fma(-x, y, 1.0), y);
  return fma(y, fma(-x, y, 1.0), y);
#endif
}

// Lists the nonzeros of a row and finds what its series needs. With giants = 0 the row is not for
// this way. Every thread gets the same.
__device__ __forceinline__ Panel look_at(const Row& row, const FlagRow& maskable,
                                         const Whole& whole, float steepest, uint32_t* nonzero,
                                         const Candidates& list, PanelMemory& memory) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Panel panel{};
  unsigned valid = 0;
  // phase: load and flag
  if (row.col == nullptr) {
    valid = flag_nonzeros(row, whole, nonzero, list.words);
    // phase: list of nonzeros
    __syncthreads();
    panel.nonzeros = list_dense(nonzero, list, valid);
    if (row.valid.all()) valid = static_cast<unsigned>(row.positions);
  } else {
    // share: 0
    panel.nonzeros = list_csr(row, nonzero, list);
    // share: 0
    valid = row.valid.all() ? static_cast<unsigned>(row.positions)
                            : block_reduce(count_flags(row.valid, row.positions), Sum());
  }
  panel.valid = static_cast<int>(valid);
  if (panel.nonzeros > list.most || valid == 0) return panel;

  float low = INFINITY, high = -INFINITY, unsound = 0.0f;
  const auto gather = [&](auto is_float32) {
    constexpr int kEach = 4;  // loads that are under way at once
#pragma unroll 1
    for (int first = threadIdx.x; first < panel.nonzeros;
         first += kEach * kRaceThreads) {  // trips: nonzeros / (4 * threads)
      float x[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int i = first + e * kRaceThreads;
        if (i >= panel.nonzeros) continue;
        if constexpr (is_float32.value)
          x[e] = __ldg(static_cast<const float*>(row.data) + row.first + list.position[i]);
        else
          x[e] = row.col == nullptr ? row.value(list.position[i]) : list.key[i];
      }
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int i = first + e * kRaceThreads;
        if (i >= panel.nonzeros) continue;
        list.key[i] = x[e];
        low = fminf(low, x[e]);
        high = fmaxf(high, x[e]);
        unsound = fmaf(x[e], 0.0f, unsound);
      }
    }
  };
  if (whole.values) {
    gather(std::true_type());
  } else {
    // share: 0
    gather(std::false_type());
  }
  unsigned hidable = 0, may_hide = 0;
  if (maskable.data != nullptr) {  // share: 0
    for (int i = threadIdx.x; i < panel.nonzeros; i += kRaceThreads)
      hidable += maskable[list.position[i]];
    may_hide = count_flags(maskable, row.positions);
    hidable = __reduce_add_sync(kAllLanes, hidable);
    may_hide = __reduce_add_sync(kAllLanes, may_hide);
    if (lane == 0) {
      memory.maskable[warp] = may_hide;
      memory.valid[warp] = hidable;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(kAllLanes, low, step));
    high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, step));
    unsound += __shfl_xor_sync(kAllLanes, unsound, step);
  }
  if (lane == 0) {
    memory.lowest[warp] = low;
    memory.highest[warp] = high;
    memory.unsound[warp] = unsound;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) {
    low = fminf(low, memory.lowest[w]);
    high = fmaxf(high, memory.highest[w]);
    unsound += memory.unsound[w];
  }
  if (maskable.data != nullptr) {  // share: 0
    hidable = may_hide = 0;
    for (int w = 0; w < kRowWarps; ++w) {
      hidable += memory.valid[w];
      may_hide += memory.maskable[w];
    }
  }
  // A column that stands twice in a row must not make their number negative.
  panel.zeros = max(panel.valid - panel.nonzeros, 0);
  panel.maskable_nonzeros = maskable.data == nullptr ? panel.nonzeros : static_cast<int>(hidable);
  panel.maskable = maskable.data == nullptr ? panel.valid : static_cast<int>(may_hide);
  if (panel.zeros > 0) {
    low = fminf(low, 0.0f);
    high = fmaxf(high, 0.0f);
  }
  const double half = 0.5 * (static_cast<double>(high) - low);
  panel.middle = low + half;
  panel.half = half;
  panel.reciprocal = half > 0.0 ? reciprocal(half) : 0.0;
  if (unsound == 0.0f) panel.giants = giants_for(static_cast<float>(half) * 1.000001f * steepest);
  return panel;
}

// The power sums of the row's values, zeros among them.
__device__ __forceinline__ void sum_powers(const Panel& panel, const Candidates& list,
                                           PanelMemory& memory) {
  double sum[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) sum[j] = 0.0;
#pragma unroll 1
  for (int i = threadIdx.x; i < panel.nonzeros; i += kRaceThreads) {  // trips: nonzeros / threads
    add_powers(1.0, panel.place(list.key[i]), panel.giants, sum);
  }
  // The zeros join as one value of their weight, in one thread.
  if (threadIdx.x == 0 && panel.zeros > 0)  // share: 1 / warps
    add_powers(panel.zeros, panel.place(0.0), panel.giants, sum);
  gather_powers(sum, memory, memory.powers);
}

__device__ __forceinline__ double wide(float slope) {
  return fma(static_cast<double>(slope), 0.0, static_cast<double>(slope));
}  // an infinite slope has no softmax

// Moments of every slope, into out at `index`.
__device__ __forceinline__ void write_panel_moments(const Panel& panel, const float* slope,
                                                    int64_t num_slopes, const PanelMemory& memory,
                                                    const Moments& out, int64_t index) {
  constexpr int kEach = 4;
  const int count = static_cast<int>(num_slopes);
#pragma unroll 1
  for (int n = threadIdx.x; n < count; n += kEach * kRowThreads) {  // trips: N * H / (4 * threads)
    double alpha[kEach], y[kEach];
    Jet jet[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = n + i * kRowThreads;
      alpha[i] = wide(at < count ? __ldg(slope + at) : 0.0f);
      y[i] = alpha[i] * panel.half;
    }
    jets(memory.powers, panel.giants, y, jet);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = n + i * kRowThreads;
      if (at >= count) break;
      const double inverse = reciprocal(jet[i].p), mean = jet[i].p1 * inverse,
                   variance = fma(-mean, mean, 2.0 * jet[i].p2 * inverse);
      // fmax would hide NaN
      const double spread = (variance < 0.0 ? 0.0 : variance) * panel.half * panel.half;
      out.mean[index + at] = static_cast<float>(fma(mean, panel.half, panel.middle));
      out.variance[index + at] = static_cast<float>(spread);
      if (out.log_partition != nullptr)  // share: 0
        out.log_partition[index + at] =
            static_cast<float>(fma(alpha[i], panel.middle, log(jet[i].p)));
    }
  }
}

// The series of the importance: sum over the chosen slopes of y^j / (j! P(y)).
__device__ __forceinline__ void sum_shares(const Panel& panel, const float* slope,
                                           const int64_t* latents, int64_t num_latents,
                                           int64_t num_chosen, int heads, PanelMemory& memory) {
  double sum[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) sum[j] = 0.0;
  // A thread keeps to one head, or where there are more heads than threads to a few.
  const int abreast = heads < kRowThreads ? heads : kRowThreads, rounds = kRowThreads / abreast;
  const int chosen = static_cast<int>(num_chosen), first = static_cast<int>(threadIdx.x) / abreast;
#pragma unroll 1
  for (int h = static_cast<int>(threadIdx.x) % abreast; h < heads; h += abreast) {  // trips: 1
#pragma unroll 1
    for (int i = first < rounds ? first : chosen; i < chosen;
         i += rounds) {  // trips: chosen * H / threads
      const int64_t latent = __ldg(latents + i);
      if (latent < 0 || latent >= num_latents) continue;
      const double y[1] = {wide(__ldg(slope + static_cast<int>(latent) * heads + h)) * panel.half};
      double p[1];
      polynomials(memory.powers, panel.giants, y, p);
      add_powers(reciprocal(p[0]), y[0], panel.giants, sum);
    }
  }
  gather_powers(sum, memory, memory.shares);
}

// Replaces the values of the list by their importance; returns that of a zero.
__device__ __forceinline__ float weigh(const Panel& panel, const Candidates& list,
                                       const PanelMemory& memory) {
  constexpr int kEach = 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < panel.nonzeros;
       i += kEach * kRowThreads) {  // trips: nonzeros / (4 * threads)
    double t[kEach], f[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int at = i + e * kRowThreads;
      t[e] = panel.place(at < panel.nonzeros ? list.key[at] : 0.0f);
    }
    polynomials(memory.shares, panel.giants, t, f);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int at = i + e * kRowThreads;
      if (at < panel.nonzeros) list.key[at] = static_cast<float>(f[e]);
    }
  }
  if (panel.zeros == 0) return 0.0f;
  const double t[1] = {panel.place(0.0)};
  double f[1];
  polynomials(memory.shares, panel.giants, t, f);
  return static_cast<float>(f[0]);
}

}  // namespace mam::cuda
