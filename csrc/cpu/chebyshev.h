// A row's values on Chebyshev nodes, and functions on nodes at a row's values. See mam_kernels/value_attention/README.md.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

// Where the values of a panel lie in [-1, 1]: t = (x - middle) * scale.
struct Panel {
  double middle, scale;
};

MAM_INLINE Panel panel_of(const Grid& grid, int panel) { return {grid.low + (panel + 0.5) * grid.width, 2.0 / grid.width}; }

static void partition(const Grid& grid, const Entries& entries, float* value, int32_t* position, int64_t* offsets) {
  float* const begin = value;
  for (int panel = 0; panel < grid.panels; ++panel) {
    offsets[panel] = value - begin;
    // the outer panels reach to infinity, so that rounding at the ends of the interval loses no value
    const float from = panel == 0 ? -__builtin_inff() : static_cast<float>(grid.low + panel * grid.width);
    const float to = panel + 1 == grid.panels ? __builtin_inff() : static_cast<float>(grid.low + (panel + 1) * grid.width);
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
  offsets[grid.panels] = value - begin;
}

constexpr int kUnroll = 4, kBlock = kUnroll * kDoubles;

// One block of values to t; beyond `count`, present is 0 and t is 0.
MAM_INLINE void load_block(const float* value, int64_t count, const Panel& panel, Double (&t)[kUnroll], Double (&present)[kUnroll]) {
  float padded[kBlock];
  if (count < kBlock) {
    for (int i = 0; i < kBlock; ++i) padded[i] = i < count ? value[i] : static_cast<float>(panel.middle);
    value = padded;
  }
  for (int u = 0; u < kUnroll; ++u) {
    t[u] = (to_double(load<HalfFloat>(value + u * kDoubles)) - panel.middle) * panel.scale;
    Double lanes = splat<Double>(1.0);
    if (count < kBlock)
      for (int i = 0; i < kDoubles; ++i) lanes[i] = u * kDoubles + i < count;
    present[u] = lanes;
  }
}

// moment[j] += sum over the values of T_j(t), by the three-term recurrence.
static void add_moments(const float* value, int64_t count, const Panel& panel, int order, double* moment) {
  Double total[kMaxOrder];
  for (int j = 0; j < order; ++j) total[j] = Double{};
  for (int64_t i = 0; i < count; i += kBlock) {
    Double twice[kUnroll], before[kUnroll], now[kUnroll];
    load_block(value + i, count - i, panel, twice, before);
    for (int u = 0; u < kUnroll; ++u) now[u] = twice[u] * before[u], twice[u] += twice[u];
    total[0] += (before[0] + before[1]) + (before[2] + before[3]);
    for (int j = 1; j < order; ++j) {
      total[j] += (now[0] + now[1]) + (now[2] + now[3]);
      for (int u = 0; u < kUnroll; ++u) {
        const Double next = twice[u] * now[u] - before[u];
        before[u] = now[u];
        now[u] = next;
      }
    }
  }
  for (int j = 0; j < order; ++j) moment[j] += sum(total[j]);
}

static void node_weights(const Grid& grid, const float* value, const int64_t* offsets, int64_t zeros, double* weights) {
  for (int p = 0; p < grid.panels; ++p) {
    const Panel panel = panel_of(grid, p);
    double moment[kMaxOrder] = {}, weight[kMaxOrder] = {};
    add_moments(value + offsets[p], offsets[p + 1] - offsets[p], panel, grid.order, moment);
    if (zeros && p == grid.zero_panel) {
      const double t = -panel.middle * panel.scale;
      double before = 1.0, now = t;
      moment[0] += static_cast<double>(zeros);
      for (int j = 1; j < grid.order; ++j) {
        moment[j] += static_cast<double>(zeros) * now;
        const double next = 2.0 * t * now - before;
        before = now;
        now = next;
      }
    }
    for (int j = 0; j < grid.order; ++j)
      for (int k = 0; k < grid.order; ++k) weight[k] += grid.transform[j * grid.order + k] * moment[j];
    for (int k = 0; k < grid.order; ++k) {
      const double offset = grid.node[p * grid.order + k] - grid.centre;
      double* const out = weights + 3 * (p * grid.order + k);
      out[0] = weight[k];
      out[1] = weight[k] * offset;
      out[2] = weight[k] * offset * offset;
    }
  }
}

// The series sum_j coefficient[j] T_j(t) at each value, by Clenshaw's recurrence.
static void evaluate(const float* value, int64_t count, const Panel& panel, const double* coefficient, int order, float* out) {
  for (int64_t i = 0; i < count; i += kBlock) {
    Double t[kUnroll], present[kUnroll], after[kUnroll], now[kUnroll];
    load_block(value + i, count - i, panel, t, present);
    for (int u = 0; u < kUnroll; ++u) after[u] = Double{}, now[u] = Double{}, t[u] += t[u];
    for (int j = order - 1; j > 0; --j) {
      for (int u = 0; u < kUnroll; ++u) {
        const Double next = t[u] * now[u] + (coefficient[j] - after[u]);
        after[u] = now[u];
        now[u] = next;
      }
    }
    for (int u = 0; u < kUnroll; ++u) store(out + i + u * kDoubles, to_float(0.5 * t[u] * now[u] + (coefficient[0] - after[u])));
  }
}

static double evaluate_one(double t, const double* coefficient, int order) {
  double after = 0, now = 0;
  for (int j = order - 1; j > 0; --j) {
    const double next = 2.0 * t * now + (coefficient[j] - after);
    after = now;
    now = next;
  }
  return t * now + (coefficient[0] - after);
}

// f at one node: the chosen slopes' exponentials there, each over its partition sum.
static double share_of_node(const double* chosen, const double* inverse, int64_t padded) {
  Double total[4] = {};
  for (int64_t s = 0; s < padded; s += 4 * kDoubles)
    for (int u = 0; u < 4; ++u) total[u] += load<Double>(chosen + s + u * kDoubles) * load<Double>(inverse + s + u * kDoubles);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

static void importance(const Grid& grid, const double* chosen, int64_t padded, const double* inverse, const float* value,
                       const int64_t* offsets, float* out, float* of_zero) {
  for (int p = 0; p < grid.panels; ++p) {
    if (offsets[p] == offsets[p + 1] && p != grid.zero_panel) continue;
    double at_node[kMaxOrder], coefficient[kMaxOrder];
    for (int k = 0; k < grid.order; ++k) at_node[k] = share_of_node(chosen + (p * grid.order + k) * padded, inverse, padded);
    for (int j = 0; j < grid.order; ++j) {
      double dot = 0;
      for (int k = 0; k < grid.order; ++k) dot += grid.transform[j * grid.order + k] * at_node[k];
      coefficient[j] = dot;
    }
    const Panel panel = panel_of(grid, p);
    evaluate(value + offsets[p], offsets[p + 1] - offsets[p], panel, coefficient, grid.order, out + offsets[p]);
    if (p == grid.zero_panel) *of_zero = static_cast<float>(evaluate_one(-panel.middle * panel.scale, coefficient, grid.order));
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
