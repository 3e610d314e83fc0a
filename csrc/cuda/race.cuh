// The exponential race of a row: random bits, and which keys are among the k smallest, by looking
// at every key. It is the way of rows that interval.cuh does not tell enough about.
#pragma once

#include "block.cuh"
#include "launch.cuh"
#include "mam/keys.h"
#include "mam/ops.h"
#include "mam/philox.h"
#include "memory.cuh"

namespace mam::cuda {

constexpr int kRaceThreads = 128;
constexpr uint32_t kNeverDrawn =
    0x7f800000u;  // the bits of infinity; finite keys, which are positive, are below

// Keys are positive floats, so their bits, 31 of them, order as they do. Read in digits of 11, 11
// and 9 bits, the first of which has the exponent and three bits of the mantissa: keys of one
// octave spread over eight counters.
constexpr int kDigits = 3;
constexpr int kDigitBits = 11, kLastDigitBits = 31 - 2 * kDigitBits;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kRaceThreads;

// The random words of one row.
struct RandomRow {
  uint64_t seed;
  uint32_t sample, step, stream;

  // The words of positions 4 * quad ... 4 * quad + 3.
  __device__ PhiloxWords words(int64_t quad) const {
    return philox(seed, static_cast<uint32_t>(quad), sample, step, stream);
  }

  __device__ __forceinline__ PhiloxWords complements(int quad) const {
    return philox<0xFFFFFFFFu>(seed, static_cast<uint32_t>(quad), sample, step, stream);
  }

  __device__ uint32_t word(int64_t position) const {
    const PhiloxWords four = words(position / 4);
    const int i = static_cast<int>(position % 4);
    return i < 2 ? (i == 0 ? four.word[0] : four.word[1]) : (i == 2 ? four.word[2] : four.word[3]);
  }
};

__device__ inline RandomRow random_row(const Draw& draw, int64_t row) {
  const uint64_t seed =
      draw.seed_ptr == nullptr ? draw.seed : static_cast<uint64_t>(*draw.seed_ptr);
  const uint32_t step =
      draw.step_ptr == nullptr ? draw.step : static_cast<uint32_t>(*draw.step_ptr);
  return {seed, static_cast<uint32_t>(draw.sample_ids == nullptr ? row : draw.sample_ids[row]),
          step, draw.stream};
}

// -log1p(-v) for v in (0, 1), to 2.5e-7 of itself at the smallest v as at the largest. 1 - v = w +
// (lost digits) and w = 2^e (1 + f) with |f| < 0.42: log w = e log 2 + f - f^2/2 + f^3 p(f), p a
// minimax polynomial. Half of what log1pf takes.
__device__ inline float standard_exponential(float v) {
  const float w = 1.0f - v, lost = v - (1.0f - w);
  // Subtracting the bits of sqrt(1/2) makes the exponent field step at sqrt(1/2), not at 1.
  const uint32_t bits = __float_as_uint(w);
  const int exponent = static_cast<int>(bits - 0x3F3504F3u) >> 23;
  const float f = __uint_as_float(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float p = 0.08700418472290039f;
  p = fmaf(p, f, -0.14267484843730927f);
  p = fmaf(p, f, 0.14914771914482117f);
  p = fmaf(p, f, -0.1657758504152298f);
  p = fmaf(p, f, 0.19963063299655914f);
  p = fmaf(p, f, -0.2500133812427521f);
  p = fmaf(p, f, 0.3333390951156616f);
  const float square = f * f;
  const float log_w = fmaf(static_cast<float>(exponent), 0.6931471805599453f,
                           f + fmaf(square, f * p, -0.5f * square));
  return lost - log_w;
}

// The k-th smallest key; of the `present` keys equal to it, the `taken` at the lowest positions are
// among the k smallest.
struct Threshold {
  uint32_t key;
  int taken, present;
};

// Finds the bin that holds the item of this rank (from 0) and leaves in `rank` its rank among the
// bin's items.
__device__ inline int find_bin(const uint32_t* histogram, int& rank, int& in_bin) {
  __shared__ int found[3];
  int counts[kBinsPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i)
    sum += counts[i] = static_cast<int>(histogram[threadIdx.x * kBinsPerThread + i]);
  int before = block_exclusive_sum(sum);
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    if (before <= rank && rank < before + counts[i]) {
      found[0] = static_cast<int>(threadIdx.x) * kBinsPerThread + i;
      found[1] = rank - before;
      found[2] = counts[i];
    }
    before += counts[i];
  }
  __syncthreads();
  rank = found[1];
  in_bin = found[2];
  const int bin = found[0];
  __syncthreads();
  return bin;
}

// The threshold of the k smallest of key(0) ... key(positions - 1), 1 <= k <= the number of finite
// keys, by radix on the keys' bits.
template <typename Key>
__device__ Threshold find_threshold(const Key& key, int64_t positions, int k) {
  __shared__ uint32_t histogram[kBins];
  uint32_t prefix = 0;
  int rank = k - 1, in_bin = 0;
#pragma unroll 1
  for (int digit = 0; digit < kDigits; ++digit) {  // trips: min(raced, 3)
    const int bits_here = digit == kDigits - 1 ? kLastDigitBits : kDigitBits;
    const int above = 31 - digit * kDigitBits, shift = above - bits_here;
    const uint32_t digit_mask = (1u << bits_here) - 1u;
#pragma unroll 1
    for (int bin = threadIdx.x; bin < kBins; bin += kRaceThreads)
      histogram[bin] = 0;  // trips: min(raced, 16)
    __syncthreads();
#pragma unroll 1
    for (int64_t l = threadIdx.x; l < positions; l += kRaceThreads) {  // trips: raced / threads
      const uint32_t bits = key(l);
      if (bits < kNeverDrawn && bits >> above == prefix >> above)
        atomicAdd(&histogram[bits >> shift & digit_mask], 1u);
    }
    __syncthreads();
    prefix |= static_cast<uint32_t>(find_bin(histogram, rank, in_bin)) << shift;
  }
  return {prefix, rank + 1, in_bin};
}

// Calls visit(l, chosen, index) for every position, where index counts the chosen positions before
// it. Every thread of the block calls this.
template <typename Key, typename Visit>
__device__ void visit_in_order(const Key& key, int64_t positions, const Threshold& threshold,
                               const Visit& visit) {
  int ties_before = 0, chosen_before = 0;
#pragma unroll 1
  for (int64_t first = 0; first < positions; first += kRaceThreads) {  // trips: raced / threads
    const int64_t l = first + threadIdx.x;
    const uint32_t bits = l < positions ? key(l) : kNeverDrawn;
    int ties = 0, chosen = 0;
    const int tie = block_rank(bits == threshold.key, ties);
    const bool wins =
        bits < threshold.key || (bits == threshold.key && ties_before + tie < threshold.taken);
    const int index = block_rank(wins, chosen);
    if (l < positions) visit(l, wins, chosen_before + index);
    ties_before += ties;
    chosen_before += chosen;
  }
}

}  // namespace mam::cuda
