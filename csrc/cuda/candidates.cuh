// The few positions of a row whose keys decide: flags, a list of them, their keys, and the rank of
// each in a histogram over the interval that the k-th key is in.
#pragma once

#include "block.cuh"
#include "intrinsics.cuh"
#include "race.cuh"

namespace mam::cuda {

constexpr int kBucketBits = 9, kBuckets = 1 << kBucketBits,
              kBucketsPerThread = kBuckets / kRaceThreads;
constexpr int kMostInBucket = 64;
constexpr int kTurns = 8;  // quads of a thread whose flags share a word

// Shared memory of a row; the launch gives words_of_flags(positions) + 2 * most words.
struct Candidates {
  uint32_t* flags;     // a bit for each position; see position_of
  uint32_t* position;  // (most,)
  float* key;          // (most,)
  int words, most;
};

inline int64_t words_of_flags(int64_t positions) {
  constexpr int64_t kEach = 4 * kTurns * kRaceThreads;
  return (positions + kEach - 1) / kEach * kRaceThreads;
}

inline int64_t most_candidates(int64_t positions) {
  const int64_t most = positions / 5;  // 32 KB where a row has 20,000: four rows a multiprocessor
  return most < 1024 ? 1024 : most > 4096 ? 4096 : most;
}

// Sizes of a row's shared memory, for the launch and the kernel.
struct Sizes {
  int words, most;
};

inline Sizes sizes_of(int64_t positions) {
  return {static_cast<int>(words_of_flags(positions)),
          static_cast<int>(most_candidates(positions))};
}

// Bit 8 j + i of word chunk * kRaceThreads + thread stands for position j of the quad that the
// thread has in turn i of the chunk.
__device__ inline uint32_t position_of(unsigned word, unsigned bit) {
  const unsigned chunk = word / kRaceThreads, thread = word % kRaceThreads;
  return ((chunk * kTurns + bit % kTurns) * kRaceThreads + thread) * 4 + bit / kTurns;
}

// Sets the bit of a position.
__device__ inline void flag_position(uint32_t* flags, uint32_t l) {
  const unsigned quad = l / 4, chunk = quad / (kTurns * kRaceThreads),
                 turn = quad / kRaceThreads % kTurns;
  atomicOr(&flags[chunk * kRaceThreads + quad % kRaceThreads], 1u << (kTurns * (l % 4) + turn));
}

// Lists the positions whose bits are set in `words` words; returns how many there are, more than
// `most` where the list does not hold them. `sum` becomes its sum over the block. Ends in a
// barrier.
__device__ inline int list_flagged(const uint32_t* flags, int words, uint32_t* list, int most,
                                   unsigned& sum) {
  __shared__ unsigned found[kRaceThreads / kWarp], sums[kRaceThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned mine = 0;
#pragma unroll 1
  for (int w = threadIdx.x; w < words; w += kRaceThreads)  // trips: ceil(L / (32 * threads))
    mine += __popc(flags[w]);
  unsigned upto = mine;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned below = __shfl_up_sync(kAllLanes, upto, step);
    if (lane >= step) upto += below;
  }
  sum = __reduce_add_sync(kAllLanes, sum);
  if (lane == kWarp - 1) {
    found[warp] = upto;
    sums[warp] = sum;
  }
  __syncthreads();
  unsigned slot = upto - mine, total = 0;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kRaceThreads / kWarp; ++other) {
    if (other < warp) slot += found[other];
    total += found[other];
    sum += sums[other];
  }
  if (total <= static_cast<unsigned>(most)) {
#pragma unroll 1
    for (int w = threadIdx.x; w < words; w += kRaceThreads) {  // trips: ceil(L / (32 * threads))
      uint32_t bits = flags[w];
      const uint32_t first = position_of(w, 0);
#pragma unroll 1
      while (bits != 0) {  // trips: most_flagged
        const unsigned bit = 31u - static_cast<unsigned>(__clz(static_cast<int>(bits)));
        list[slot++] = (bit % kTurns * (4u * kRaceThreads) + bit / kTurns) + first;
        bits ^= 1u << bit;
      }
    }
  }
  __syncthreads();
  return static_cast<int>(total);
}

// Chooses among `count` listed candidates the `wanted` with the smallest keys and marks them in the
// mask. key(position) is a position's key. False where the last of them is not in [from, to), or
// too many keys are equal: then the mask means nothing.
template <typename Key>
__device__ bool mark_smallest(const Candidates& candidates, int count, int wanted, float from,
                              float to, const Key& key, uint8_t* mask) {
  __shared__ unsigned histogram[kBuckets];
  __shared__ unsigned before_warp_of[kRaceThreads / kWarp];
  __shared__ int place[3];  // bucket of the last one, how many before it, and in it
  __shared__ unsigned below_count;
  __shared__ int listed;
  __shared__ float near_key[kMostInBucket];
  __shared__ uint32_t near_position[kMostInBucket];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Keys are not negative, so their bits are in their order; a bucket is a range of bits.
  uint32_t first = __float_as_uint(from), range = __float_as_uint(to) - first;
  int shift = max(0, 32 - kBucketBits - __clz(static_cast<int>(range)));
  for (int i = 0; i < kBucketsPerThread; ++i) histogram[i * kRaceThreads + threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    place[0] = -1;
    below_count = 0;
    listed = 0;
  }
  __syncthreads();

#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kRaceThreads) {  // trips: candidates / threads
    const float x = key(candidates.position[i]);
    candidates.key[i] = x;
    const uint32_t above = __float_as_uint(x) - first;
    if (x < from) atomicAdd(&below_count, 1u);
    if (above < range) atomicAdd(&histogram[above >> shift], 1u);
  }
  __syncthreads();
  int before_first = static_cast<int>(below_count);

#pragma unroll 1
  while (true) {  // trips: 1
    // The bucket that the last of the wanted is in.
    unsigned counts[kBucketsPerThread], mine = 0;
#pragma unroll
    for (int i = 0; i < kBucketsPerThread; ++i)
      mine += counts[i] = histogram[threadIdx.x * kBucketsPerThread + i];
    unsigned upto = mine;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const unsigned below = __shfl_up_sync(kAllLanes, upto, step);
      if (lane >= step) upto += below;
    }
    if (lane == kWarp - 1) before_warp_of[warp] = upto;
    __syncthreads();
    int before = before_first + static_cast<int>(upto - mine);
#pragma unroll
    for (int other = 0; other < kRaceThreads / kWarp - 1; ++other)
      if (other < warp) before += static_cast<int>(before_warp_of[other]);
#pragma unroll
    for (int i = 0; i < kBucketsPerThread; ++i) {
      const int after = before + static_cast<int>(counts[i]);
      if (before < wanted && wanted <= after) {
        place[0] = static_cast<int>(threadIdx.x) * kBucketsPerThread + i;
        place[1] = before;
        place[2] = after - before;
      }
      before = after;
    }
    __syncthreads();
    if (place[0] < 0) return false;
    first += static_cast<uint32_t>(place[0]) << shift;
    range = 1u << shift;
    before_first = place[1];
    if (place[2] <= kMostInBucket) break;
    // Many keys crowd in a bucket of a wide interval: it is divided in its turn.
    {  // share: 0
      if (shift == 0) return false;
      shift = max(0, shift - kBucketBits);
      for (int i = 0; i < kBucketsPerThread; ++i)
        histogram[threadIdx.x * kBucketsPerThread + i] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < count; i += kRaceThreads) {
        const uint32_t above = __float_as_uint(candidates.key[i]) - first;
        if (above < range) atomicAdd(&histogram[above >> shift], 1u);
      }
      __syncthreads();
    }
  }

  // Those before the bucket are marked; those in it are few, and compared in pairs.
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kRaceThreads) {  // trips: candidates / threads
    const float x = candidates.key[i];
    const uint32_t bits = __float_as_uint(x);
    if (bits < first) mask[candidates.position[i]] = 1;
    if (bits - first < range) {
      const int at = atomicAdd(&listed, 1);
      near_key[at] = x;
      near_position[at] = candidates.position[i];
    }
  }
  __syncthreads();
  const int near = listed, of_last = wanted - before_first;
  if (static_cast<int>(threadIdx.x) < near) {  // share: 1 / warps
    const float x = near_key[threadIdx.x];
    const uint32_t position = near_position[threadIdx.x];
    int sooner = 0;
#pragma unroll 1
    for (int i = 0; i < near; ++i)  // trips: 2
      sooner += near_key[i] < x || (near_key[i] == x && near_position[i] < position);
    if (sooner < of_last) mask[position] = 1;
  }
  return true;
}

}  // namespace mam::cuda
