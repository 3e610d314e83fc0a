// Products of tiles in shared memory: 64 latents by 64 tokens, sixteen scores a thread.
//
// Thread (i, j) of the 16 x 16 holds rows 4 i ... 4 i + 3, latents, and columns 4 j ... 4 j + 3,
// tokens. The sixteen threads of a row are half a warp. Widths are taken in slices of kSlice,
// filled up with zeros, so that any head width works.
#pragma once

#include "block.cuh"
#include "launch.cuh"
#include "mam/ops.h"
#include "memory.cuh"

namespace mam::cuda {

constexpr int kTile = 64;
constexpr int kSlice = 32;
constexpr int kTileThreads = 256;
constexpr int kSide = 16;  // threads of a side
constexpr int kPerThread = kTile / kSide;
constexpr int kPad = 4;  // keeps rows 16-byte aligned and spreads them over the banks
constexpr int kPitch = kTile + kPad;

using Scores = float[kPerThread][kPerThread];

__device__ inline int tile_row() { return threadIdx.x / kSide * kPerThread; }
__device__ inline int tile_column() { return threadIdx.x % kSide * kPerThread; }

// What a score is lowered by to become the logarithm of attention. A log-sum-exp of -inf is that of
// a cell without tokens, whose attention is 0, whatever the scores are.
__device__ inline float shift_of(float logsumexp) {
  return logsumexp == -INFINITY ? INFINITY : logsumexp;
}

// One head of the tokens of one cell, or of the latents: rows of `width` elements. Rows that are
// not valid read as zeros, whatever they hold; `index`, where not null, names the row that stands
// at each place.
struct Rows {
  const void* data;
  DType dtype;
  int64_t first, stride, count, width;
  const int64_t* index;
  FlagRow valid;

  __device__ bool exists(int64_t row) const { return row < count && valid[row]; }
  __device__ int64_t place(int64_t row) const {
    return first + (index == nullptr ? row : index[row]) * stride;
  }
};

__device__ inline Rows rows_of(const Tokens& x, int64_t batch, int64_t head, const FlagRow& valid) {
  return {x.data,
          x.dtype,
          batch * x.stride_batch + head * x.stride_head,
          x.stride_position,
          x.positions,
          x.width,
          nullptr,
          valid};
}

__device__ inline Rows latent_rows(const Tokens& query, int64_t head) {
  return rows_of(query, 0, head, {nullptr, 0});
}

// Calls put(r, c, x) with x = rows[row + r][column + c] for r < kTile and c < Columns, neighbouring
// threads at neighbouring c. Of rows that may have flags the compiler makes two loops, of which the
// first is for those without.
template <int Columns, typename T, typename Put>
__device__ void read_tile(const T* data, const Rows& rows, int64_t row, int64_t column,
                          const Put& put) {
  constexpr int kStep = kTileThreads / Columns;
  const int c = threadIdx.x % Columns;
#pragma unroll 4
  for (int step = 0; step < kTile / kStep; ++step) {  // trips: 2 | 0
    const int r = threadIdx.x / Columns + step * kStep;
    const bool inside = column + c < rows.width && rows.exists(row + r);
    put(r, c, inside ? to_float(data[rows.place(row + r) + column + c]) : 0.0f);
  }
}

template <int Columns, typename Put>
__device__ void read_tile(const Rows& rows, int64_t row, int64_t column, const Put& put) {
  if (rows.dtype == DType::float32) {  // share: 0
    read_tile<Columns>(static_cast<const float*>(rows.data), rows, row, column, put);
  } else if (rows.dtype == DType::float16) {  // share: 0
    read_tile<Columns>(static_cast<const __half*>(rows.data), rows, row, column, put);
  } else {
    read_tile<Columns>(static_cast<const __nv_bfloat16*>(rows.data), rows, row, column, put);
  }
}

// A tile of rows as they are, [kTile][Columns + kPad].
template <int Columns>
__device__ void load_tile(float (&tile)[kTile][Columns + kPad], const Rows& rows, int64_t row,
                          int64_t column) {
  read_tile<Columns>(rows, row, column, [&tile](int r, int c, float x) { tile[r][c] = x; });
}

// The same transposed, [kSlice][kPitch].
__device__ inline void load_transposed(float (&tile)[kSlice][kPitch], const Rows& rows, int64_t row,
                                       int64_t column) {
  read_tile<kSlice>(rows, row, column, [&tile](int r, int c, float x) { tile[c][r] = x; });
}

// Two or four neighbouring floats in one access.
template <int Count>
__device__ void load_vector(const float* from, float (&to)[Count]) {
  static_assert(Count == 2 || Count == 4);
  if constexpr (Count == 4) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  } else {
    const float2 x = *reinterpret_cast<const float2*>(from);
    to[0] = x.x, to[1] = x.y;
  }
}

// acc[i][j] += left[i] * right[j].
template <int Count>
__device__ void add_outer(const float (&left)[kPerThread], const float (&right)[Count],
                          float (&acc)[kPerThread][Count]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < Count; ++j) acc[i][j] = fmaf(left[i], right[j], acc[i][j]);
  }
}

// acc[i][j] += sum over k < Depth of a[row + i][k] * b[k][column + j], where the thread has Columns
// / kSide columns.
template <int Depth, int Columns>
__device__ void multiply_add(const float (*a)[Depth + kPad], const float (*b)[Columns + kPad],
                             float (&acc)[kPerThread][Columns / kSide]) {
  const int row = tile_row(), column = threadIdx.x % kSide * (Columns / kSide);
#pragma unroll 4
  for (int k = 0; k < Depth; k += 4) {  // trips: DEPTH / 16
    float rows[kPerThread][4];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) load_vector(&a[row + i][k], rows[i]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      float left[kPerThread], right[Columns / kSide];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) left[i] = rows[i][step];
      load_vector(&b[k + step][column], right);
      add_outer(left, right, acc);
    }
  }
}

// acc[i][j] += sum over k < kTile of a[k][row + i] * b[k][column + j]: the rows of the result are
// the columns of `a`.
template <int Columns>
__device__ void multiply_add_transposed(const float (*a)[kPitch], const float (*b)[Columns + kPad],
                                        float (&acc)[kPerThread][Columns / kSide]) {
  const int row = tile_row(), column = threadIdx.x % kSide * (Columns / kSide);
#pragma unroll 4
  for (int k = 0; k < kTile; ++k) {  // trips: 16
    float left[kPerThread], right[Columns / kSide];
    load_vector(&a[k][row], left);
    load_vector(&b[k][column], right);
    add_outer(left, right, acc);
  }
}

// Shared memory of one product: a slice of each factor of the scores, or a tile of rows that the
// scores multiply.
union Factors {
  struct {
    float rows[kTile][kSlice + kPad];
    float columns[kSlice][kPitch];
  } slice;
  float narrow[kTile][kSlice + kPad];
  float wide[kTile][kTile + kPad];

  template <int Columns>
  __device__ float (&tile()) [kTile][Columns + kPad] {
    if constexpr (Columns == kSlice) {
      return narrow;
    } else {
      return wide;
    }
  }
};

// scores[i][j] = a[row + i] . b[column + j]. Every thread of the block calls this; it begins and
// ends in a barrier.
__device__ inline void dot_products(Factors& shared, const Rows& a, int64_t row, const Rows& b,
                                    int64_t column, Scores& scores) {
  for (auto& line : scores) {
    for (float& score : line) score = 0.0f;
  }
  for (int64_t slice = 0; slice < a.width; slice += kSlice) {  // trips: ceil(Dz / H / 32)
    __syncthreads();
    load_tile<kSlice>(shared.slice.rows, a, row, slice);
    load_transposed(shared.slice.columns, b, column, slice);
    __syncthreads();
    // where: DEPTH = 32
    multiply_add<kSlice, kTile>(shared.slice.rows, shared.slice.columns, scores);
  }
  __syncthreads();
}

__device__ inline void put_scores(float (&tile)[kTile][kPitch], const Scores& scores) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    *reinterpret_cast<float4*>(&tile[tile_row() + i][tile_column()]) =
        make_float4(scores[i][0], scores[i][1], scores[i][2], scores[i][3]);
  }
}

// What this thread put.
__device__ inline void get_scores(const float (&tile)[kTile][kPitch], Scores& scores) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) load_vector(&tile[tile_row() + i][tile_column()], scores[i]);
}

// The reduction over the sixteen threads of a row of scores, in each of them.
template <typename Operation>
__device__ float reduce_row(float x, Operation combine) {
  for (int step = kSide / 2; step > 0; step /= 2)
    x = combine(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Columns of a result that a block works on: heads no wider than a slice leave no thread idle.
constexpr bool is_narrow(int64_t width) { return width <= kSlice; }
constexpr int result_columns(int64_t width) { return is_narrow(width) ? kSlice : kTile; }

constexpr int64_t kBlocksWanted = 264;  // about two for each multiprocessor of a large GPU; fixed,
                                        // so that results do not depend on the device

}  // namespace mam::cuda
