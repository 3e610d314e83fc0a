// Moments and importance of a row by power series about the middle of its values. See
// mam_kernels/ops/value_attention/README.md.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

struct InverseFactorials {
  double of[kMaxOrder];
};

constexpr InverseFactorials inverse_factorials() {
  InverseFactorials table{};
  double value = 1.0;
  for (int j = 0; j < kMaxOrder; ++j) {
    table.of[j] = value;
    value /= j + 1;
  }
  return table;
}

static constexpr InverseFactorials kInverseFactorial = inverse_factorials();

// Where the values of a panel lie in [-1, 1]: t = (x - middle) * scale.
struct Panel {
  double middle, scale;
};

MAM_INLINE Panel panel_of(const Series& series, int panel) {
  return {series.low + (2 * panel + 1) * series.half, series.half > 0 ? 1.0 / series.half : 0.0};
}

// How far the middle of a panel is from that of the row, in halves of a panel.
MAM_INLINE double distance_of(const Series& series, int panel) {
  return 2 * panel + 1 - series.panels;
}

static void partition(const Series& series, const Entries& entries, float* value, int32_t* position,
                      int64_t* offsets) {
  float* const begin = value;
  for (int panel = 0; panel < series.panels; ++panel) {
    offsets[panel] = value - begin;
    // the outer panels reach to infinity, so that rounding at the ends of the interval loses no
    // value
    const float from =
        panel == 0 ? -__builtin_inff() : static_cast<float>(series.low + 2 * panel * series.half);
    const float to = panel + 1 == series.panels
                         ? __builtin_inff()
                         : static_cast<float>(series.low + 2 * (panel + 1) * series.half);
    int64_t i = 0;
    for (; i + kFloats <= entries.count; i += kFloats) {
      const Float x = load<Float>(entries.value + i);
      const uint32_t inside = lane_bits((x >= from) & (x < to));
      append(position, load<Int>(entries.position + i), inside);
      const float* const end = append(value, x, inside);
      position += end - value;
      value += end - value;
    }
    for (; i < entries.count; ++i) {
      if (entries.value[i] >= from && entries.value[i] < to) {
        *value++ = entries.value[i];
        *position++ = entries.position[i];
      }
    }
  }
  offsets[series.panels] = value - begin;
}

// Independent chains of products, as many as there are registers for.
constexpr int kUnroll = MAM_VECTOR_BYTES == 64 ? 8 : 4, kBlock = kUnroll * kDoubles;

// A block of values to t; beyond `count`, t is 0.
template <int N>
MAM_INLINE void load_block(const float* value, int64_t count, const Panel& panel, Double (&t)[N]) {
  constexpr int kBlock = N * kDoubles;
  float padded[kBlock];
  if (count < kBlock) {
    for (int i = 0; i < kBlock; ++i)
      padded[i] = i < count ? value[i] : static_cast<float>(panel.middle);
    value = padded;
  }
  for (int u = 0; u < N; ++u)
    t[u] = (to_double(load<HalfFloat>(value + u * kDoubles)) - panel.middle) * panel.scale;
  if (count >= kBlock) return;
  for (int i = static_cast<int>(count); i < kBlock; ++i) t[i / kDoubles][i % kDoubles] = 0.0;
}

// sums[j] += sum of t^j over the values, for 0 < j < order. Four powers at a time cost one product
// beside their additions.
static void add_powers(const float* value, int64_t count, const Panel& panel, int order,
                       double* sums) {
  constexpr int kChains = kUnroll / 2, kStep = kChains * kDoubles;
  Double total[kMaxOrder + 3];
  for (int j = 1; j < order + 3; ++j) total[j] = Double{};
  for (int64_t i = 0; i < count; i += kStep) {
    Double t[kChains], square[kChains], cube[kChains], fourth[kChains], power[kChains];
    load_block(value + i, count - i, panel, t);
    for (int u = 0; u < kChains; ++u) {
      power[u] = t[u];
      square[u] = t[u] * t[u];
      cube[u] = square[u] * t[u];
      fourth[u] = square[u] * square[u];
    }
    for (int j = 1; j < order; j += 4)
      for (int u = 0; u < kChains; ++u) {
        total[j] += power[u];
        total[j + 1] += power[u] * t[u];
        total[j + 2] += power[u] * square[u];
        total[j + 3] += power[u] * cube[u];
        power[u] *= fourth[u];
      }
  }
  for (int j = 1; j < order; ++j) sums[j] += sum(total[j]);
}

static void power_sums(const Series& series, const float* value, const int64_t* offsets,
                       int64_t zeros, double* coefficients) {
  for (int p = 0; p < series.panels; ++p) {
    const Panel panel = panel_of(series, p);
    const int64_t count = offsets[p + 1] - offsets[p];
    double* const out = coefficients + p * series.order;
    for (int j = 0; j < series.order; ++j) out[j] = 0.0;
    out[0] = static_cast<double>(count);
    if (zeros && p == series.zero_panel) {
      const double t = -panel.middle * panel.scale;
      double power = static_cast<double>(zeros);
      out[0] += power;
      for (int j = 1; j < series.order; ++j) out[j] = power *= t;
    }
    add_powers(value + offsets[p], count, panel, series.order, out);
    for (int j = 0; j < series.order; ++j) out[j] *= kInverseFactorial.of[j];
  }
}

constexpr int kTileVectors = MAM_VECTOR_BYTES == 64 ? 4 : 3, kTile = kTileVectors * kDoubles;

// A polynomial, its first derivative and half its second, by Horner's rule.
MAM_INLINE void with_derivatives(const double* coefficient, int order,
                                 const Double (&y)[kTileVectors], Double (&p)[kTileVectors],
                                 Double (&p1)[kTileVectors], Double (&p2)[kTileVectors]) {
  for (int v = 0; v < kTileVectors; ++v)
    p[v] = splat<Double>(coefficient[order - 1]), p1[v] = Double{}, p2[v] = Double{};
  for (int j = order - 2; j >= 0; --j)
    for (int v = 0; v < kTileVectors; ++v) {
      p2[v] = p2[v] * y[v] + p1[v];
      p1[v] = p1[v] * y[v] + p[v];
      p[v] = p[v] * y[v] + coefficient[j];
    }
}

// Writes as many of the lanes as there are slopes.
MAM_INLINE void store_some(float* to, HalfFloat vector, int64_t count) {
  if (count >= kDoubles) {
    store(to, vector);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = vector[i];
  }
}

// M, M' and M'' are those of the values' distances from the middle of the row, in halves of a
// panel.
MAM_INLINE void finish(const Series& series, Double slope, Double m, Double m1, Double m2,
                       int64_t at, int64_t slopes, const RowMoments& out) {
  const Double inverse = 1.0 / m, mean = m1 * inverse;
  const Double variance = m2 * inverse - mean * mean;
  const int64_t count = slopes - at;
  store(out.inverse + at, inverse);
  if (out.log_partition)
    store_some(out.log_partition + at, to_float(slope * series.centre + logarithm(m)), count);
  store_some(out.mean + at, to_float(mean * series.half + series.centre), count);
  store_some(out.variance + at,
             to_float((variance < 0.0 ? Double{} : variance) * (series.half * series.half)),
             count);  // NaN stays NaN
}

static void moments(const Series& series, const double* coefficients, const double* slope,
                    int64_t slopes, const RowMoments& out) {
  for (int64_t first = 0; first < slopes; first += kTile) {
    Double alpha[kTileVectors], y[kTileVectors], m[kTileVectors], m1[kTileVectors],
        m2[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v)
      alpha[v] = load<Double>(slope + first + v * kDoubles), y[v] = alpha[v] * series.half;
    if (series.panels == 1) {
      with_derivatives(coefficients, series.order, y, m, m1, m2);
      for (int v = 0; v < kTileVectors; ++v) m2[v] += m2[v];
    } else {
      Double scale[kTileVectors], growth[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) {
        scale[v] = exponential(y[v] * distance_of(series, 0));
        growth[v] = exponential(y[v] + y[v]);
        m[v] = m1[v] = m2[v] = Double{};
      }
      for (int p = 0; p < series.panels; ++p) {
        Double q[kTileVectors], q1[kTileVectors], q2[kTileVectors];
        with_derivatives(coefficients + p * series.order, series.order, y, q, q1, q2);
        const double distance = distance_of(series, p);
        for (int v = 0; v < kTileVectors; ++v) {
          m[v] += scale[v] * q[v];
          m1[v] += scale[v] * (q1[v] + distance * q[v]);
          m2[v] += scale[v] * (2.0 * (q2[v] + distance * q1[v]) + distance * distance * q[v]);
          scale[v] *= growth[v];
        }
      }
    }
    for (int v = 0; v < kTileVectors; ++v)
      if (first + v * kDoubles < slopes)
        finish(series, alpha[v], m[v], m1[v], m2[v], first + v * kDoubles, slopes, out);
  }
}

// The series of f in a panel: f(x) = sum_j coefficient[j] t^j.
static void importance_series(const Series& series, int panel, const double* slope,
                              const double* inverse, int64_t slopes, double* coefficient) {
  constexpr int kChains = 4;
  Double total[kMaxOrder];
  for (int j = 0; j < series.order; ++j) total[j] = Double{};
  for (int64_t s = 0; s < slopes; s += kChains * kDoubles) {
    Double y[kChains], term[kChains];
    for (int u = 0; u < kChains; ++u) {
      y[u] = load<Double>(slope + s + u * kDoubles) * series.half;
      term[u] = load<Double>(inverse + s + u * kDoubles);
      if (series.panels > 1) term[u] *= exponential(y[u] * distance_of(series, panel));
    }
    for (int j = 0; j < series.order; ++j) {
      total[j] += (term[0] + term[1]) + (term[2] + term[3]);
      for (int u = 0; u < kChains; ++u) term[u] *= y[u];
    }
  }
  for (int j = 0; j < series.order; ++j) coefficient[j] = sum(total[j]) * kInverseFactorial.of[j];
}

static void evaluate(const float* value, int64_t count, const Panel& panel,
                     const double* coefficient, int order, float* out) {
  for (int64_t i = 0; i < count; i += kBlock) {
    Double t[kUnroll], f[kUnroll];
    load_block(value + i, count - i, panel, t);
    for (int u = 0; u < kUnroll; ++u) f[u] = splat<Double>(coefficient[order - 1]);
    for (int j = order - 2; j >= 0; --j)
      for (int u = 0; u < kUnroll; ++u) f[u] = f[u] * t[u] + coefficient[j];
    for (int u = 0; u < kUnroll; ++u) store(out + i + u * kDoubles, to_float(f[u]));
  }
}

static void importance(const Series& series, const double* slope, const double* inverse,
                       int64_t slopes, const float* value, const int64_t* offsets, float* out,
                       float* of_zero) {
  for (int p = 0; p < series.panels; ++p) {
    if (offsets[p] == offsets[p + 1] && p != series.zero_panel) continue;
    double coefficient[kMaxOrder];
    importance_series(series, p, slope, inverse, slopes, coefficient);
    const Panel panel = panel_of(series, p);
    evaluate(value + offsets[p], offsets[p + 1] - offsets[p], panel, coefficient, series.order,
             out + offsets[p]);
    if (p != series.zero_panel) continue;
    double f = coefficient[series.order - 1];
    for (int j = series.order - 2; j >= 0; --j)
      f = f * (-panel.middle * panel.scale) + coefficient[j];
    *of_zero = static_cast<float>(f);
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
