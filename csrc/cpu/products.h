// Small dense products of contiguous float32 matrices: those of the closed form of
// attention, before and after the pass over the cells (collapse.cpp). They read each parameter
// once, at sizes where calling a matrix library costs more than the arithmetic.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

using QuarterFloat = VectorOf<float, MAM_VECTOR_BYTES / 4>::type;

// out[i] = matrix[i] . x for each row; rows are `stride` apart.
static void dots(const float* matrix, int64_t rows, int64_t width, int64_t stride, const float* x,
                 float* out) {
  constexpr int kRows = 4;  // at a time, for independent sums that share each load of x
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    const float* m = matrix + row * stride;
    Float total[kRows] = {};
    int64_t i = 0;
    for (; i + kFloats <= width; i += kFloats) {
      const Float vector = load<Float>(x + i);
      for (int r = 0; r < kRows; ++r) total[r] += load<Float>(m + r * stride + i) * vector;
    }
    for (int r = 0; r < kRows; ++r) {
      float result = sum(total[r]);
      for (int64_t j = i; j < width; ++j) result += m[r * stride + j] * x[j];
      out[row + r] = result;
    }
  }
  for (; row < rows; ++row) {
    const float* m = matrix + row * stride;
    Float total{};
    int64_t i = 0;
    for (; i + kFloats <= width; i += kFloats) total += load<Float>(m + i) * load<Float>(x + i);
    float result = sum(total);
    for (; i < width; ++i) result += m[i] * x[i];
    out[row] = result;
  }
}

// A block of `combine`: Outs rows of the result, Vectors vectors of each.
template <typename Vector, int Outs, int Vectors>
MAM_INLINE void combine_block(const Combination c, int64_t out, int64_t column) {
  constexpr int kLanes = static_cast<int>(sizeof(Vector) / sizeof(float));
  Vector total[Outs][Vectors] = {};
  const float* matrix = c.matrix + column;
  const float* weight = c.weight + out * c.weight_out;
  for (int64_t row = 0; row < c.rows; ++row, matrix += c.stride, weight += c.weight_row) {
    Vector loaded[Vectors];
    for (int v = 0; v < Vectors; ++v) loaded[v] = load<Vector>(matrix + v * kLanes);
    for (int o = 0; o < Outs; ++o)
      for (int v = 0; v < Vectors; ++v) total[o][v] += weight[o * c.weight_out] * loaded[v];
  }
  for (int o = 0; o < Outs; ++o)
    for (int v = 0; v < Vectors; ++v) {
      float* const to = c.out + (out + o) * c.out_stride + column + v * kLanes;
      store(to, c.add ? load<Vector>(to) + total[o][v] : total[o][v]);
    }
}

template <int Outs, int Vectors>
MAM_INLINE void combine_rows(const Combination c, int64_t out) {
  int64_t column = 0;
  for (; column + Vectors * kFloats <= c.width; column += Vectors * kFloats)
    combine_block<Float, Outs, Vectors>(c, out, column);
  for (; column + kFloats <= c.width; column += kFloats)
    combine_block<Float, Outs, 1>(c, out, column);
  for (; column + kFloats / 2 <= c.width; column += kFloats / 2)
    combine_block<HalfFloat, Outs, 1>(c, out, column);
  for (; column + kFloats / 4 <= c.width; column += kFloats / 4)
    combine_block<QuarterFloat, Outs, 1>(c, out, column);
  for (; column < c.width; ++column)
    for (int o = 0; o < Outs; ++o) {
      float total = 0;
      for (int64_t row = 0; row < c.rows; ++row)
        total += c.weight[(out + o) * c.weight_out + row * c.weight_row] *
                 c.matrix[row * c.stride + column];
      float* const to = c.out + (out + o) * c.out_stride + column;
      *to = c.add ? *to + total : total;
    }
}

static void combine_some(const Combination c) {
  int64_t out = 0;
  for (; out + 8 <= c.outs; out += 8) combine_rows<8, 2>(c, out);
  for (; out + 2 <= c.outs; out += 2) combine_rows<2, 4>(c, out);
  for (; out < c.outs; ++out) combine_rows<1, 8>(c, out);
}

// Sums of sums of kSummed terms, which lose less than one long sum in float32 does.
static void combine(const Combination& c) {
  constexpr int64_t kSummed = 64;
  Combination part = c;
  for (int64_t row = 0; row == 0 || row < c.rows; row += kSummed) {
    part.matrix = c.matrix + row * c.stride;
    part.weight = c.weight + row * c.weight_row;
    part.rows = c.rows - row < kSummed ? c.rows - row : kSummed;
    part.add = c.add || row > 0;
    combine_some(part);
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
