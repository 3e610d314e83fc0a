// The draw of one cell, whose zeros share one weight: they are decided by their random words, the
// nonzeros one by one. Writes the importance on the way.
#pragma once

#include "draw.cuh"
#include "read_panel.cuh"

namespace mam::cuda {

// What the draw of a cell writes, and the flags of its positions.
struct CellDraw {
  FlagRow valid, maskable;
  Whole whole;
  float* importance;
  uint8_t* mask;
};

// Where a zero's uniform has to be compared: the upper 23 bits of its word, added to these, reach
// 2^23 where the zero is not hidden for sure, and where it cannot be in the interval.
struct ZeroCurves {
  uint32_t surely = 1u << 23, perhaps = 1u << 23;
};

// Four positions of a cell as far as they are zeros; the others are left as not hidden.
template <bool Plain>
__device__ __forceinline__ void pass_quad(const CellDraw& cell, const ZeroCurves& curves,
                                          const RandomRow& random, int quad, int64_t positions,
                                          float of_zero, uint32_t zeros, Sifted& sifted,
                                          uint32_t bit) {
  const PhiloxWords words = random.words(quad);
  uint32_t early[4], late[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    early[i] = (words.word[i] >> 9) + curves.surely;
    late[i] = (words.word[i] >> 9) + curves.perhaps;
  }
  const uint32_t not_surely = bytes_of_bit_23(early), not_perhaps = bytes_of_bit_23(late);
  uint32_t bytes = ~not_surely & zeros, doubt = not_surely & ~not_perhaps;
  if constexpr (Plain) {
    reinterpret_cast<uint32_t*>(cell.mask)[quad] = bytes;
    reinterpret_cast<float4*>(cell.importance)[quad] =
        make_float4(of_zero, of_zero, of_zero, of_zero);
  } else {
    uint32_t maskable = 0, valid = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t l = static_cast<int64_t>(quad) * 4 + i;
      if (l >= positions) continue;
      if (cell.maskable[l]) maskable |= 255u << (8 * i);
      if (cell.valid[l]) valid |= 255u << (8 * i);
    }
    bytes &= maskable;
    doubt &= maskable;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t l = static_cast<int64_t>(quad) * 4 + i;
      if (l >= positions) continue;
      cell.mask[l] = bytes >> (8 * i) & 1u;
      cell.importance[l] = valid >> (8 * i) & 1u ? of_zero : 0.0f;
    }
  }
  sifted.marked = sum_of_bytes(bytes, sifted.marked);
  sifted.flags |= doubt & bit;
}

// As above for flags that can be read four at a time.
__device__ __forceinline__ void pass_flagged_quad(const CellDraw& cell, const ZeroCurves& curves,
                                                  const RandomRow& random, int quad, float of_zero,
                                                  uint32_t zeros, Sifted& sifted, uint32_t bit) {
  const uint32_t maskable =
      cell.maskable.data == nullptr
          ? 0xFFFFFFFFu
          : bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(cell.maskable.data) + quad));
  const uint32_t valid =
      cell.valid.data == nullptr
          ? 0xFFFFFFFFu
          : bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(cell.valid.data) + quad));
  const PhiloxWords words = random.words(quad);
  uint32_t early[4], late[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    early[i] = (words.word[i] >> 9) + curves.surely;
    late[i] = (words.word[i] >> 9) + curves.perhaps;
  }
  const uint32_t not_surely = bytes_of_bit_23(early), not_perhaps = bytes_of_bit_23(late);
  const uint32_t bytes = ~not_surely & zeros & maskable;
  reinterpret_cast<uint32_t*>(cell.mask)[quad] = bytes;
  reinterpret_cast<float4*>(cell.importance)[quad] =
      make_float4(valid & 255u ? of_zero : 0.0f, valid >> 8 & 255u ? of_zero : 0.0f,
                  valid >> 16 & 255u ? of_zero : 0.0f, valid >> 24 ? of_zero : 0.0f);
  sifted.marked = sum_of_bytes(bytes, sifted.marked);
  sifted.flags |= not_surely & ~not_perhaps & maskable & bit;
}

// The pass over all positions: importance of the zeros everywhere, mask and flags of the zeros.
template <int Kind>  // 0: no flags, whole; 1: flags, whole; 2: any
__device__ __forceinline__ unsigned pass_zeros(const CellDraw& cell, const ZeroCurves& curves,
                                               const RandomRow& random, int64_t positions,
                                               float of_zero, const uint32_t* nonzero,
                                               const Candidates& list) {
  const int count = static_cast<int>((positions + 3) / 4);
  Sifted sifted{0, 0, 0.0f};
  const auto one = [&](int quad, uint32_t zeros, uint32_t bit) {
    if constexpr (Kind == 1)
      pass_flagged_quad(cell, curves, random, quad, of_zero, zeros, sifted, bit);
    else
      pass_quad<Kind == 0>(cell, curves, random, quad, positions, of_zero, zeros, sifted, bit);
  };
  int quad = threadIdx.x;
#pragma unroll 1
  for (int w = threadIdx.x; w < list.words; w += kRaceThreads) {  // trips: ceil(L / (32 * threads))
    const uint32_t zeros = ~nonzero[w];
    sifted.flags = 0;
    if (quad + (kTurns - 1) * kRaceThreads <
        count) {  // share: L // (32 * threads) / ceil(L / (32 * threads))
#pragma unroll
      for (int i = 0; i < kTurns; ++i)
        one(quad + i * kRaceThreads, zeros >> i & 0x01010101u, 0x01010101u << i);
      quad += kTurns * kRaceThreads;
    } else {
      uint32_t rest = zeros, bit = 0x01010101u;
#pragma unroll 1
      for (; quad < count; quad += kRaceThreads, rest >>= 1,
                           bit += bit)  // trips: L / (4 * threads) % 8 / ceil(L / (32 * threads))
        one(quad, rest & 0x01010101u, bit);
    }
    list.flags[w] = sifted.flags & zeros;
  }
  return sifted.marked;
}

// The nonzeros: their importance is written, and they are marked or flagged. Returns how many this
// thread marked. The pass must be complete.
template <bool Flagged>
__device__ __forceinline__ unsigned race_nonzeros(const CellDraw& cell, const Panel& panel,
                                                  const Candidates& list, const Interval& it,
                                                  const RandomRow& random) {
  unsigned marked = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < panel.nonzeros; i += kRaceThreads) {  // trips: nonzeros / threads
    const uint32_t l = list.position[i];
    const float weight = list.key[i];
    cell.importance[l] = weight;
    if constexpr (Flagged) {
      if (!cell.maskable[l]) continue;
    }
    const float q = it.decay(weight), v = uniform(random.word(l));
    if (v < it.surely(q)) {
      cell.mask[l] = 1;
      ++marked;
    } else if (v < it.perhaps(q)) {
      flag_position(list.flags, l);
    }
  }
  return marked;
}

// The key of a position of the cell, relative to a power of two near the mean of the weights.
struct CellKeys {
  const float* importance;
  RandomRow random;
  float eps, scale;

  __device__ __forceinline__ float operator()(uint32_t l) const {
    const float weight = importance[l];
    const float key = standard_exponential(uniform(random.word(l))) / ((weight + eps) * scale);
    return drawable(weight, eps) ? key : INFINITY;
  }
};

// Importance and mask of a cell whose list holds the importance of its nonzeros. `drawn`, in shared
// memory as `to_hide` is, becomes true where the mask is right too; else it has to be drawn by all
// keys.
__device__ __forceinline__ void draw_cell(const CellDraw& cell, const Panel& panel, float of_zero,
                                          const uint32_t* nonzero, const Candidates& list,
                                          int64_t positions, const int& to_hide,
                                          const RandomRow& random, const Weighting& weighting,
                                          bool& drawn) {
  __shared__ Interval shared_interval;
  // phase: interval
  if (threadIdx.x < kWarp) {  // share: 1 / warps
    float sample[4 * kSampleQuads];
    const bool flagged = cell.maskable.data != nullptr;
#pragma unroll
    for (int s = 0; s < 4 * kSampleQuads; ++s) {
      const unsigned i =
          static_cast<unsigned>(panel.nonzeros) * (s * kWarp + threadIdx.x) / kSample;
      const float weight = panel.nonzeros > 0 ? list.key[i] : -1.0f;
      sample[s] = drawable(weight, weighting.eps) ? weight : -1.0f;
      if (flagged && panel.nonzeros > 0 && !cell.maskable[list.position[i]])  // share: 0
        sample[s] = -1.0f;
    }
    const float zeros = static_cast<float>(panel.maskable - panel.maskable_nonzeros);
    Interval it{};
    const int k = to_hide;
    if (k > 0 && k < panel.maskable && weighting.inverse_temperature == 1.0f &&
        positions >= kFewestSampled &&
        (zeros == 0.0f || drawable(of_zero, weighting.eps)))  // share: 1 - sharpened
      it = likely_interval<false>(sample, {zeros, of_zero, static_cast<float>(panel.nonzeros)},
                                  weighting.eps, k, kRoom);
    if (threadIdx.x == 0) shared_interval = it;
  }
  __syncthreads();
  ZeroCurves curves;
  if (shared_interval.known) {
    constexpr float kWords = 0x1p23f;
    const float q = shared_interval.decay(of_zero);
    curves.surely -= static_cast<uint32_t>(shared_interval.surely(q) * kWords);
    curves.perhaps -=
        min(static_cast<uint32_t>(shared_interval.perhaps(q) * kWords) + 2u, 1u << 23);
  }
  // phase: pass over the zeros
  unsigned marked;
  if (cell.valid.data == nullptr && cell.maskable.data == nullptr && cell.whole.out) {
    marked = pass_zeros<0>(cell, curves, random, positions, of_zero, nonzero, list);
  } else if (cell.whole.out && cell.whole.valid && cell.whole.maskable) {
    // share: 0
    marked = pass_zeros<1>(cell, curves, random, positions, of_zero, nonzero, list);
  } else {
    // share: 0
    marked = pass_zeros<2>(cell, curves, random, positions, of_zero, nonzero, list);
  }
  __syncthreads();
  // phase: race of the nonzeros
  const Interval it = shared_interval;  // read only now: registers are scarce in the pass
  if (cell.maskable.data == nullptr) {
    marked += race_nonzeros<false>(cell, panel, list, it, random);
  } else {
    // share: 0
    marked += race_nonzeros<true>(cell, panel, list, it, random);
  }
  __syncthreads();
  if (!it.known) return;
  // phase: candidates
  // share: 1 - sharpened
  {
    const int count = list_flagged(list.flags, list.words, list.position, list.most, marked);
    if (count > list.most) return;
    if (mark_smallest(list, count, to_hide - static_cast<int>(marked), it.from, it.to,
                      CellKeys{cell.importance, random, weighting.eps, it.scale}, cell.mask) &&
        threadIdx.x == 0)
      drawn = true;
  }
}

}  // namespace mam::cuda
