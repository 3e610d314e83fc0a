// A row's moments and importance by power series about the middle of its values, in float64: the
// counterpart of csrc/cpu/{panels.cpp,series.h}. See mam_kernels/ops/value_attention/README.md.
#pragma once

#include "block.cuh"
#include "row.cuh"

namespace mam::cuda {

constexpr int kMaxOrder = 40, kMaxPanels = 16;
constexpr double kLargestBeta = 5.0, kTruncation = 1e-11;

// The interval from `low` on, in panels twice `half` wide; no panels where the series do not reach.
struct Series {
  double low, half;
  int panels, order;

  __device__ double centre() const { return low + panels * half; }
  __device__ double middle(int panel) const { return low + (2 * panel + 1) * half; }
  __device__ double reciprocal() const { return half > 0.0 ? 1.0 / half : 0.0; }
  __device__ int panel_of(double x) const {
    const double place = (x - low) * (0.5 * reciprocal());
    return min(static_cast<int>(fmax(place, 0.0)), panels - 1);
  }
};

__device__ inline Series plan_series(float low, float high, float steepest) {
  const double width = static_cast<double>(high) - low, beta = 0.5 * steepest * width;
  if (!(beta <= kLargestBeta * kMaxPanels)) return {low, 0.0, 0, 0};
  const int panels = max(1, static_cast<int>(ceil(beta / kLargestBeta)));
  const double each = beta / panels;
  int order = kMaxOrder;
  double term = exp(each);
  for (int n = 1; n + 2 < kMaxOrder; ++n) {
    term *= each / n;
    if (each >= n + 1 || term > kTruncation * (1.0 - each / (n + 1))) continue;
    order = n + 2;
    break;
  }
  return {low, 0.5 * width / panels, panels, order};
}

// sums[j] += 1/j! times the sum over the block of term[i] factor[i]^j, in a fixed order. Every
// thread calls this; `partial` holds kRowWarps * kMaxOrder numbers, and the sums are complete after
// the next barrier.
template <int N>
__device__ void add_power_sums(double (&term)[N], const double (&factor)[N], int order,
                               double* partial, double* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int j = 0; j < order; ++j) {
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum += term[i];
      term[i] *= factor[i];
    }
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane == 0) partial[warp * kMaxOrder + j] = sum;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < order) {
    double sum = 0.0, factorial = 1.0;
    for (int w = 0; w < kRowWarps; ++w) sum += partial[w * kMaxOrder + threadIdx.x];
    for (int j = 2; j <= static_cast<int>(threadIdx.x); ++j) factorial *= j;
    sums[threadIdx.x] += sum / factorial;
  }
  __syncthreads();
}

// Sums of the powers of a row's gathered nonzeros join `sums`, (panels, kMaxOrder).
__device__ inline void add_values(const float* gathered, int count, const Series& series,
                                  double* partial, double* sums) {
  constexpr int kEach = 4;
  for (int panel = 0; panel < series.panels; ++panel) {
    for (int first = 0; first < count; first += kEach * kRowThreads) {
      double term[kEach], t[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int v = first + i * kRowThreads + threadIdx.x;
        const double x = v < count ? static_cast<double>(gathered[v]) : series.middle(panel);
        t[i] = (x - series.middle(panel)) * series.reciprocal();
        term[i] = v < count && series.panel_of(x) == panel ? 1.0 : 0.0;
      }
      add_power_sums(term, t, series.order, partial, sums + panel * kMaxOrder);
    }
  }
}

__device__ inline void add_zeros(int64_t zeros, const Series& series, double* sums) {
  if (zeros == 0 || threadIdx.x != 0) return;
  const int panel = series.panel_of(0.0);
  const double t = -series.middle(panel) * series.reciprocal();
  double term = static_cast<double>(zeros);
  for (int j = 0; j < series.order; ++j) {
    sums[panel * kMaxOrder + j] += term;
    term *= t / (j + 1);
  }
}

// M, M' and M'' of the values' distances from the middle of the row, in halves of a panel.
struct SeriesMoments {
  double m, m1, m2;
};

__device__ inline SeriesMoments moments_of(const Series& series, const double* sums, double y) {
  SeriesMoments total{0.0, 0.0, 0.0};
  for (int panel = 0; panel < series.panels; ++panel) {
    const double* const coefficient = sums + panel * kMaxOrder;
    double p = coefficient[series.order - 1], p1 = 0.0, p2 = 0.0;
    for (int j = series.order - 2; j >= 0; --j) {
      p2 = fma(p2, y, p1);
      p1 = fma(p1, y, p);
      p = fma(p, y, coefficient[j]);
    }
    const double distance = 2 * panel + 1 - series.panels,
                 scale = series.panels == 1 ? 1.0 : exp(y * distance);
    total.m += scale * p;
    total.m1 += scale * (p1 + distance * p);
    total.m2 += scale * (2.0 * (p2 + distance * p1) + distance * distance * p);
  }
  return total;
}

__device__ inline double evaluate(const Series& series, const double* share, double x) {
  const int panel = series.panel_of(x);
  const double t = (x - series.middle(panel)) * series.reciprocal();
  const double* const coefficient = share + panel * kMaxOrder;
  double f = coefficient[series.order - 1];
  for (int j = series.order - 2; j >= 0; --j) f = fma(f, t, coefficient[j]);
  return f;
}

}  // namespace mam::cuda
