// What the threads of a block compute together. Every thread of the block calls these; the order of
// the operands is fixed, so the results are the same bits in every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mam::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Min {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

// The sum over a warp, in every lane; all lanes of the warp call this.
__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The reduction of one value a thread, in every thread.
template <typename T, typename Operation>
__device__ T block_reduce(T value, Operation combine) {
  __shared__ T partial[kMaxWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  T result = partial[0];
#pragma unroll 1
  for (int other = 1; other < warps; ++other)  // trips: warps
    result = combine(result, partial[other]);
  __syncthreads();
  return result;
}

// The same in a block of so many warps: fewer instructions.
template <int Warps, typename T, typename Operation>
__device__ __forceinline__ T block_reduce_of(T value, Operation combine) {
  __shared__ T partial[Warps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  T result = partial[0];
#pragma unroll
  for (int other = 1; other < Warps; ++other) result = combine(result, partial[other]);
  __syncthreads();
  return result;
}

// How much the warps before this one hold in total, given each warp's own amount; `total` is that
// of the block.
__device__ inline int before_warp(int amount, int& total) {
  __shared__ int amounts[kMaxWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  if (lane == 0) amounts[warp] = amount;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll 1
  for (int other = 0; other < warps; ++other) {  // trips: warps
    if (other < warp) before += amounts[other];
    total += amounts[other];
  }
  __syncthreads();
  return before;
}

__device__ inline int lanes_below(unsigned ballot) {
  return __popc(ballot & ((1u << (threadIdx.x % kWarp)) - 1u));
}

// The number of threads before this one whose flag is set; `total` is the number in the block.
__device__ inline int block_rank(bool flag, int& total) {
  const unsigned ballot = __ballot_sync(kAllLanes, flag);
  return lanes_below(ballot) + before_warp(__popc(ballot), total);
}

// The sum of the values of the threads before this one.
__device__ inline int block_exclusive_sum(int value) {
  int inclusive = value, total;
  for (int step = 1; step < kWarp; step *= 2) {
    const int below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (static_cast<int>(threadIdx.x) % kWarp >= step) inclusive += below;
  }
  return before_warp(__shfl_sync(kAllLanes, inclusive, kWarp - 1), total) + inclusive - value;
}

}  // namespace mam::cuda
