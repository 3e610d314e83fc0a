// The few positions of a row whose keys decide: flags, a list of them, their keys, and the rank of
// each in a histogram over the interval that the k-th key is in.
#pragma once

#include "block.cuh"
#include "intrinsics.cuh"
#include "race.cuh"

namespace mam::cuda {

constexpr int kBuckets = 512, kBucketsPerThread = kBuckets / kRaceThreads;
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
// too many keys crowd: then the mask means nothing.
template <typename Key>
__device__ bool mark_smallest(const Candidates& candidates, int count, int wanted, float from,
                              float to, const Key& key, uint8_t* mask) {
  __shared__ unsigned histogram[kBuckets];
  __shared__ unsigned before_warp_of[kRaceThreads / kWarp];
  __shared__ int place[3];  // bucket of the last one, how many of it, how many listed
  __shared__ unsigned below_count;
  __shared__ float near_key[kMostInBucket];
  __shared__ uint32_t near_position[kMostInBucket];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float per_bucket = static_cast<float>(kBuckets) / (to - from);
  for (int i = 0; i < kBucketsPerThread; ++i) histogram[i * kRaceThreads + threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    place[0] = -1;
    place[2] = 0;
    below_count = 0;
  }
  __syncthreads();

  const auto bucket_of = [&](float x) {
    return min(static_cast<int>((x - from) * per_bucket), kBuckets - 1);
  };
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kRaceThreads) {  // trips: candidates / threads
    const float x = key(candidates.position[i]);
    candidates.key[i] = x;
    if (x < from) atomicAdd(&below_count, 1u);
    if (x >= from && x < to) atomicAdd(&histogram[bucket_of(x)], 1u);
  }
  __syncthreads();

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
  int before = static_cast<int>(below_count + upto - mine);
#pragma unroll
  for (int other = 0; other < kRaceThreads / kWarp - 1; ++other)
    if (other < warp) before += static_cast<int>(before_warp_of[other]);
#pragma unroll
  for (int i = 0; i < kBucketsPerThread; ++i) {
    const int after = before + static_cast<int>(counts[i]);
    if (before < wanted && wanted <= after) {
      place[0] = static_cast<int>(threadIdx.x) * kBucketsPerThread + i;
      place[1] = wanted - before;
    }
    before = after;
  }
  __syncthreads();
  const int last = place[0], of_last = place[1];
  if (last < 0) return false;

  // Those of the buckets before are marked; those of the last one are few, and compared in pairs.
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kRaceThreads) {  // trips: candidates / threads
    const float x = candidates.key[i];
    if (!(x < to)) continue;
    const int bucket = x < from ? -1 : bucket_of(x);
    if (bucket < last) mask[candidates.position[i]] = 1;
    if (bucket == last) {
      const int at = atomicAdd(&place[2], 1);
      if (at < kMostInBucket) {
        near_key[at] = x;
        near_position[at] = candidates.position[i];
      }
    }
  }
  __syncthreads();
  const int near = place[2];
  if (near > kMostInBucket) return false;
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
