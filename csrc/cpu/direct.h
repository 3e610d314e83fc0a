// The value path by one exponential for each value and slope, stable for any finite slope: where
// the series do not reach.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

struct Extremes {
  double low, high;
};

// Of a row that has a value, zeros among them.
static Extremes extremes_of(const Entries& entries) {
  Extremes extremes =
      entries.zeros ? Extremes{0.0, 0.0} : Extremes{entries.value[0], entries.value[0]};
  for (int64_t i = 0; i < entries.count; ++i) {
    const double x = entries.value[i];
    extremes.low = x < extremes.low ? x : extremes.low;
    extremes.high = x > extremes.high ? x : extremes.high;
  }
  return extremes;
}

static void direct_moments(const Entries& entries, const float* slope, int64_t slopes,
                           double* log_partition, const RowMoments& out) {
  const Extremes extremes = extremes_of(entries);
  for (int64_t s = 0; s < slopes; ++s) {
    const double alpha = or_nan(slope[s]);
    // the heaviest value: the distances to it keep the digits of a narrow distribution
    const double heaviest = alpha < 0 ? extremes.low : extremes.high;
    Double m{}, m1{}, m2{};
    for (int64_t i = 0; i < entries.count; i += kDoubles) {
      const int64_t left = entries.count - i;
      float padded[kDoubles];
      const float* value = entries.value + i;
      if (left < kDoubles) {
        for (int j = 0; j < kDoubles; ++j)
          padded[j] = j < left ? value[j] : static_cast<float>(heaviest);
        value = padded;
      }
      const Double distance = to_double(load<HalfFloat>(value)) - heaviest;
      Double e = exponential(alpha * distance);
      if (left < kDoubles)
        for (int64_t j = left; j < kDoubles; ++j) e[j] = 0;
      m += e;
      m1 += e * distance;
      m2 += e * distance * distance;
    }
    const double weight = entries.zeros ? static_cast<double>(entries.zeros) *
                                              exponential(splat<Double>(-alpha * heaviest))[0]
                                        : 0.0;
    const double total = sum(m) + weight;
    const double mean = (sum(m1) - weight * heaviest) / total;
    const double variance = (sum(m2) + weight * heaviest * heaviest) / total - mean * mean;
    log_partition[s] = alpha * heaviest + logarithm(splat<Double>(total))[0];
    if (out.log_partition) out.log_partition[s] = static_cast<float>(log_partition[s]);
    out.mean[s] = static_cast<float>(mean + heaviest);
    out.variance[s] = static_cast<float>(variance < 0 ? 0.0 : variance);
  }
}

static void direct_importance(const Entries& entries, const float* slope,
                              const double* log_partition, int64_t slopes, float* importance,
                              float* of_zero) {
  Double zero{};
  for (int64_t s = 0; s < slopes; s += kDoubles)
    for (int64_t j = 0; j < kDoubles && s + j < slopes; ++j)
      zero[j] += exponential(splat<Double>(-log_partition[s + j]))[0];
  *of_zero = static_cast<float>(sum(zero));
  for (int64_t i = 0; i < entries.count; i += kDoubles) {
    const int64_t left = entries.count - i;
    float value[kDoubles];
    for (int j = 0; j < kDoubles; ++j) value[j] = entries.value[i + (j < left ? j : 0)];
    const Double x = to_double(load<HalfFloat>(value));
    Double total{};
    for (int64_t s = 0; s < slopes; ++s)
      total += exponential(or_nan(slope[s]) * x - log_partition[s]);
    for (int64_t j = 0; j < kDoubles && j < left; ++j)
      importance[i + j] = static_cast<float>(total[j]);
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
