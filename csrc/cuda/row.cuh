// One row of Values: its stored entries, and the nonzero ones gathered into shared memory.
#pragma once

#include "block.cuh"
#include "launch.cuh"
#include "mam/ops.h"
#include "memory.cuh"

namespace mam::cuda {

constexpr int kRowThreads = 256;
constexpr int kLoads = 4;                     // entries a thread reads before it uses the first
constexpr int kRound = kRowThreads * kLoads;  // entries a block takes in at a time
constexpr int kGathered = 2 * kRound;         // capacity of the shared memory for nonzeros

// The entries of one row: every position where the values are dense, the stored ones in CSR. Of
// unsound indices only what is in bounds is followed.
struct Row {
  const void* data;
  DType dtype;
  int64_t first, stride, entries, positions;
  const void* col;
  bool index64;
  FlagRow valid;

  __device__ int64_t position(int64_t entry) const {
    return col == nullptr ? entry : load_index(col, index64, first + entry);
  }
  __device__ float value(int64_t entry) const { return load(data, dtype, first + entry * stride); }
  __device__ bool has(int64_t position) const {
    return position >= 0 && position < positions && valid[position];
  }
};

__device__ inline Row row_of(const Values& values, const Flags& valid, int64_t row) {
  const FlagRow flags = flag_row(valid, row);
  if (values.crow == nullptr) {
    return {values.data,
            values.dtype,
            row * values.stride_row,
            values.stride_position,
            values.positions,
            values.positions,
            nullptr,
            false,
            flags};
  }
  const int64_t first = bounded(load_index(values.crow, values.index64, row), values.stored + 1);
  const int64_t last = bounded(load_index(values.crow, values.index64, row + 1), values.stored + 1);
  const int64_t entries = last < first ? 0 : min(last - first, values.positions);
  return {values.data,      values.dtype, first,          1,    entries,
          values.positions, values.col,   values.index64, flags};
}

// Gathers valid nonzeros of the entries from `next` on, `end` excluded, until they or the room in
// shared memory run out; moves `next` on and returns how many there are. Their order is fixed.
// `positions` may be null. Every thread of the block calls this; it ends in a barrier.
__device__ inline int gather_nonzeros(const Row& row, int64_t& next, int64_t end, float* values,
                                      uint32_t* positions) {
  int count = 0;
  for (; next < end && count + kRound <= kGathered; next += kRound) {
    float x[kLoads];
    uint32_t where[kLoads];
    unsigned ballot[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t entry = next + i * kRowThreads + threadIdx.x;
      x[i] = entry < end ? row.value(entry) : 0.0f;
      const int64_t position = entry < end ? row.position(entry) : 0;
      if (x[i] != 0.0f && !row.has(position)) x[i] = 0.0f;
      where[i] = static_cast<uint32_t>(position);
    }
    int in_warp = 0, in_round;
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      in_warp += __popc(ballot[i] = __ballot_sync(kAllLanes, x[i] != 0.0f));
    int slot = count + before_warp(in_warp, in_round);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int mine = slot + lanes_below(ballot[i]);
      if (x[i] != 0.0f) {
        values[mine] = x[i];
        if (positions != nullptr) positions[mine] = where[i];
      }
      slot += __popc(ballot[i]);
    }
    count += in_round;
  }
  __syncthreads();
  return count;
}

}  // namespace mam::cuda
