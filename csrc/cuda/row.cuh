// One row of Values: its stored entries, and the nonzero ones gathered into shared memory.
#pragma once

#include "block.cuh"
#include "launch.cuh"
#include "mam/ops.h"
#include "memory.cuh"

namespace mam::cuda {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;
constexpr int kLoads = 4;                     // entries a thread reads before it uses the first
constexpr int kRound = kRowThreads * kLoads;  // entries a block takes in at a time
constexpr int kGathered = 2 * kRound;         // capacity of the shared memory for nonzeros

// Which positions of a row are attended to: those that are valid and not hidden.
struct Attended {
  FlagRow valid;
  const uint8_t* hidden = nullptr;  // contiguous, or null

  __device__ bool all() const { return valid.data == nullptr && hidden == nullptr; }
  __device__ bool operator[](int64_t position) const {
    return valid[position] && (hidden == nullptr || hidden[position] == 0);
  }
};

// The entries of one row: every position where the values are dense, the stored ones in CSR.
struct Row {
  const void* data;
  DType dtype;
  int64_t first, stride, entries;
  const void* col;
  bool index64;
  Attended valid;

  int64_t positions;

  // Of an entry whose column is out of range, -1.
  __device__ int64_t position(int64_t entry) const {
    if (col == nullptr) return entry;
    const int64_t l = load_index(col, index64, first + entry);
    return l >= 0 && l < positions ? l : -1;
  }
  __device__ float value(int64_t entry) const { return load(data, dtype, first + entry * stride); }
};

__device__ inline int64_t clamped(int64_t x, int64_t least, int64_t most) {
  return x < least ? least : x > most ? most : x;
}

__device__ inline Row row_of(const Values& values, const Flags& valid, const uint8_t* hidden,
                             int64_t row) {
  const Attended flags{flag_row(valid, row),
                       hidden == nullptr ? nullptr : hidden + row * values.positions};
  if (values.crow == nullptr) {
    return {values.data,
            values.dtype,
            row * values.stride_row,
            values.stride_position,
            values.positions,
            nullptr,
            false,
            flags,
            values.positions};
  }
  // A matrix whose offsets are wrong is not read beyond what it stores.
  const int64_t first = clamped(load_index(values.crow, values.index64, row), 0, values.stored);
  const int64_t last =
      clamped(load_index(values.crow, values.index64, row + 1), first, values.stored);
  return {values.data,    values.dtype, first,           1, last - first, values.col,
          values.index64, flags,        values.positions};
}

// How many of this thread's positions are flagged.
template <typename Flagged>
__device__ unsigned count_flags(const Flagged& flags, int64_t positions) {
  unsigned count = 0;
  for (int64_t l = threadIdx.x; l < positions; l += kRowThreads) count += flags[l];
  return count;
}

// Gathers valid nonzeros of the entries from `next` on, `end` excluded, until they or the room in
// shared memory run out; moves `next` on and returns how many there are. Their order is fixed.
// `positions` may be null. Every thread of the block calls this; it ends in a barrier.
__device__ inline int gather_nonzeros(const Row& row, int64_t& next, int64_t end, float* values,
                                      uint32_t* positions, int capacity = kGathered) {
  int count = 0;
  for (; next < end && count + kRound <= capacity; next += kRound) {
    float x[kLoads];
    uint32_t where[kLoads];
    unsigned ballot[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t entry = next + i * kRowThreads + threadIdx.x;
      x[i] = entry < end ? row.value(entry) : 0.0f;
      const int64_t position = entry < end ? row.position(entry) : 0;
      if (x[i] != 0.0f && (position < 0 || !row.valid[position])) x[i] = 0.0f;
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
