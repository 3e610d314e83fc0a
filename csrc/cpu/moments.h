// Partition sum, mean and variance of every slope from a row's weights on the nodes: three small matrix products.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

constexpr int kTileVectors = 2, kTile = kTileVectors * kDoubles;

static void exponentials(const Grid& grid, const float* slope, int64_t slopes, int64_t first_tile, int64_t last_tile, double* tiles,
                         double* shift) {
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    double* out = tiles + tile * grid.nodes * kTile;
    Double alpha[kTileVectors] = {};
    for (int i = 0; i < kTile && tile * kTile + i < slopes; ++i) alpha[i / kDoubles][i % kDoubles] = or_nan(slope[tile * kTile + i]);
    for (int v = 0; v < kTileVectors; ++v) store(shift + tile * kTile + v * kDoubles, alpha[v] * grid.centre);
    for (int k = 0; k < grid.nodes; ++k)
      for (int v = 0; v < kTileVectors; ++v, out += kDoubles) store(out, exponential(alpha[v] * (grid.node[k] - grid.centre)));
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

MAM_INLINE void finish(Double m, Double m1, Double m2, double centre, Double shift, int64_t count, int64_t at, const RowMoments& out) {
  const Double inverse = 1.0 / m, mean = m1 * inverse;
  const Double variance = m2 * inverse - mean * mean;
  store(out.inverse + at, inverse);
  store_some(out.log_partition + at, to_float(shift + logarithm(m)), count);
  store_some(out.mean + at, to_float(mean + centre), count);
  store_some(out.variance + at, to_float(variance < 0.0 ? Double{} : variance), count);  // NaN stays NaN
}

template <int Rows>
MAM_INLINE void moments_of(const Grid& grid, const Exponentials& exponentials, const NodeWeights* weights, const RowMoments* out) {
  for (int64_t tile = 0; tile < exponentials.num_tiles; ++tile) {
    const double* e = exponentials.tiles + tile * grid.nodes * kTile;
    Double total[Rows][3][kTileVectors] = {};
    for (int k = 0; k < grid.nodes; ++k, e += kTile)
      for (int r = 0; r < Rows; ++r)
        for (int m = 0; m < 3; ++m)
          for (int v = 0; v < kTileVectors; ++v) total[r][m][v] += weights[r][3 * k + m] * load<Double>(e + v * kDoubles);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t at = tile * kTile + v * kDoubles;
        if (at < exponentials.slopes)
          finish(total[r][0][v], total[r][1][v], total[r][2][v], grid.centre, load<Double>(exponentials.shift + at),
                 exponentials.slopes - at, at, out[r]);
      }
  }
}

static void moments(const Grid& grid, const Exponentials& exponentials, int rows, const NodeWeights* weights, const RowMoments* out) {
  if (rows == 2) {
    moments_of<2>(grid, exponentials, weights, out);
  } else {
    moments_of<1>(grid, exponentials, weights, out);
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
