// The moments and the importance of a row whose slopes are served by one power series about the
// middle of its values, of at most 29 terms, and whose nonzeros fit in shared memory: nearly all
// rows. read_panel.cuh lists its values. See mam_kernels/ops/value_attention/README.md.
#pragma once

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
