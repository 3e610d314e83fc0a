// Reads a row: lists its nonzeros in shared memory, and finds the middle, the width and the number
// of terms of its power series, which panel_series.cuh works with.
#pragma once

#include <type_traits>

#include "candidates.cuh"
#include "panel_series.cuh"
#include "row.cuh"
#include "step.cuh"

namespace mam::cuda {

// Sets a bit for each valid nonzero of a dense row, in the order of position_of; returns how many
// of this thread's positions are valid, where there are flags.
__device__ __forceinline__ unsigned flag_nonzeros(const Row& row, const Whole& whole,
                                                  uint32_t* nonzero, int words) {
  const int count = static_cast<int>((row.positions + 3) / 4);
  const bool flagged = !row.valid.all();
  unsigned total = 0;
  int quad = threadIdx.x;
  if (whole.values && !flagged) {
    const float4* data =
        reinterpret_cast<const float4*>(static_cast<const float*>(row.data) + row.first) + quad;
#pragma unroll 1
    for (int w = threadIdx.x; w < words; w += kRaceThreads) {  // trips: ceil(L / (32 * threads))
      uint32_t word = 0;
      if (quad + (kTurns - 1) * kRaceThreads <
          count) {  // share: L // (32 * threads) / ceil(L / (32 * threads))
        float4 x[kTurns];
#pragma unroll
        for (int i = 0; i < kTurns; ++i) x[i] = __ldg(data + i * kRaceThreads);
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          if (x[i].x != 0.0f) word |= 1u << i;
          if (x[i].y != 0.0f) word |= 1u << (8 + i);
          if (x[i].z != 0.0f) word |= 1u << (16 + i);
          if (x[i].w != 0.0f) word |= 1u << (24 + i);
        }
        quad += kTurns * kRaceThreads;
        data += kTurns * kRaceThreads;
      } else {
#pragma unroll 1
        for (int i = 0; quad < count; ++i, quad += kRaceThreads,
                 data += kRaceThreads) {  // trips: L / (4 * threads) % 8 / ceil(L / (32 * threads))
          const float4 x = __ldg(data);
          uint32_t bits = 0;
          if (x.x != 0.0f) bits |= 1u;
          if (x.y != 0.0f) bits |= 1u << 8;
          if (x.z != 0.0f) bits |= 1u << 16;
          if (x.w != 0.0f) bits |= 1u << 24;
          word |= bits << i;
        }
      }
      nonzero[w] = word;
    }
    return 0;
  }
  // share: 0
  for (int w = threadIdx.x; w < words; w += kRaceThreads) {
    uint32_t word = 0;
#pragma unroll 1
    for (int i = 0; i < kTurns && quad < count; ++i, quad += kRaceThreads) {
      float x[4];
      uint32_t allowed = 0xFFFFFFFFu;
      if (whole.values && whole.valid) {
        const float4 four =
            __ldg(reinterpret_cast<const float4*>(static_cast<const float*>(row.data) + row.first) +
                  quad);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        if (row.valid.valid.data != nullptr)
          allowed =
              bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(row.valid.valid.data) + quad));
        if (row.valid.hidden != nullptr)
          allowed &=
              ~bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(row.valid.hidden) + quad));
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t l = static_cast<int64_t>(quad) * 4 + j;
          const bool there = l < row.positions && row.valid[l];
          x[j] = there ? row.value(l) : 0.0f;
          if (!there) allowed &= ~(255u << (8 * j));
        }
      }
      uint32_t bits = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (x[j] != 0.0f) bits |= 1u << (8 * j);
      word |= (bits & allowed) << i;
      total = sum_of_bytes(allowed & 0x01010101u, total);
    }
    nonzero[w] = word;
  }
  return total;
}

// The list of a dense row: its flagged positions and their values.
__device__ __forceinline__ int list_dense(const uint32_t* nonzero, const Candidates& list,
                                          unsigned& valid) {
  // where: most_flagged = most_nonzero
  return list_flagged(nonzero, list.words, list.position, list.most, valid);
}

// The list of a CSR row, and the bits of its positions; more than `most` where it does not hold
// all.
__device__ inline int list_csr(const Row& row, uint32_t* nonzero, const Candidates& list) {
  for (int w = threadIdx.x; w < list.words; w += kRaceThreads) nonzero[w] = 0;
  int64_t next = 0;
  const int count = gather_nonzeros(row, next, row.entries, list.key, list.position, list.most);
  if (next < row.entries) return list.most + 1;
  for (int i = threadIdx.x; i < count; i += kRaceThreads) flag_position(nonzero, list.position[i]);
  __syncthreads();
  return count;
}

// Lists the nonzeros of a row and finds what its series needs. With giants = 0 the row is not for
// this way. Every thread gets the same.
__device__ __forceinline__ Panel look_at(const Row& row, const FlagRow& maskable,
                                         const Whole& whole, float steepest, uint32_t* nonzero,
                                         const Candidates& list, PanelMemory& memory) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Panel panel{};
  unsigned valid = 0;
  // phase: load and flag
  if (row.col == nullptr) {
    valid = flag_nonzeros(row, whole, nonzero, list.words);
    // phase: list of nonzeros
    __syncthreads();
    panel.nonzeros = list_dense(nonzero, list, valid);
    if (row.valid.all()) valid = static_cast<unsigned>(row.positions);
  } else {
    // share: 0
    panel.nonzeros = list_csr(row, nonzero, list);
    // share: 0
    valid = row.valid.all() ? static_cast<unsigned>(row.positions)
                            : block_reduce(count_flags(row.valid, row.positions), Sum());
  }
  panel.valid = static_cast<int>(valid);
  if (panel.nonzeros > list.most || valid == 0) return panel;

  float low = INFINITY, high = -INFINITY, unsound = 0.0f;
  const auto gather = [&](auto is_float32) {
    constexpr int kEach = 4;  // loads that are under way at once
#pragma unroll 1
    for (int first = threadIdx.x; first < panel.nonzeros;
         first += kEach * kRaceThreads) {  // trips: nonzeros / (4 * threads)
      float x[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int i = first + e * kRaceThreads;
        if (i >= panel.nonzeros) continue;
        if constexpr (is_float32.value)
          x[e] = __ldg(static_cast<const float*>(row.data) + row.first + list.position[i]);
        else
          x[e] = row.col == nullptr ? row.value(list.position[i]) : list.key[i];
      }
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int i = first + e * kRaceThreads;
        if (i >= panel.nonzeros) continue;
        list.key[i] = x[e];
        low = fminf(low, x[e]);
        high = fmaxf(high, x[e]);
        unsound = fmaf(x[e], 0.0f, unsound);
      }
    }
  };
  if (whole.values) {
    gather(std::true_type());
  } else {
    // share: 0
    gather(std::false_type());
  }
  unsigned hidable = 0, may_hide = 0;
  if (maskable.data != nullptr) {  // share: 0
    for (int i = threadIdx.x; i < panel.nonzeros; i += kRaceThreads)
      hidable += maskable[list.position[i]];
    may_hide = count_flags(maskable, row.positions);
    hidable = __reduce_add_sync(kAllLanes, hidable);
    may_hide = __reduce_add_sync(kAllLanes, may_hide);
    if (lane == 0) {
      memory.maskable[warp] = may_hide;
      memory.valid[warp] = hidable;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(kAllLanes, low, step));
    high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, step));
    unsound += __shfl_xor_sync(kAllLanes, unsound, step);
  }
  if (lane == 0) {
    memory.lowest[warp] = low;
    memory.highest[warp] = high;
    memory.unsound[warp] = unsound;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) {
    low = fminf(low, memory.lowest[w]);
    high = fmaxf(high, memory.highest[w]);
    unsound += memory.unsound[w];
  }
  if (maskable.data != nullptr) {  // share: 0
    hidable = may_hide = 0;
    for (int w = 0; w < kRowWarps; ++w) {
      hidable += memory.valid[w];
      may_hide += memory.maskable[w];
    }
  }
  // A column that stands twice in a row must not make their number negative.
  panel.zeros = max(panel.valid - panel.nonzeros, 0);
  panel.maskable_nonzeros = maskable.data == nullptr ? panel.nonzeros : static_cast<int>(hidable);
  panel.maskable = maskable.data == nullptr ? panel.valid : static_cast<int>(may_hide);
  if (panel.zeros > 0) {
    low = fminf(low, 0.0f);
    high = fmaxf(high, 0.0f);
  }
  const double half = 0.5 * (static_cast<double>(high) - low);
  panel.middle = low + half;
  panel.half = half;
  panel.reciprocal = half > 0.0 ? reciprocal(half) : 0.0;
  if (unsound == 0.0f) panel.giants = giants_for(static_cast<float>(half) * 1.000001f * steepest);
  return panel;
}

}  // namespace mam::cuda
