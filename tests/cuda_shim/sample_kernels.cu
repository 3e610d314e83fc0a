// Kernels that test the shim itself: a right one, and one for each mistake that it must report.
// Called by test_shim.py.
#include <string>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace {

using mam::cuda::kAllLanes;

__global__ void rank_odd(int* out) {
  int total;
  const int rank = mam::cuda::block_rank(threadIdx.x % 2 == 1, total);
  out[threadIdx.x] = rank * 1000 + total;
}

__global__ void warp_operations(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sum = lane;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  const int above = __shfl_down_sync(kAllLanes, lane, 1),
            below = __shfl_up_sync(kAllLanes, lane, 1);
  out[threadIdx.x] = sum + 1000 * (above - below) + 10000 * __shfl_sync(kAllLanes, lane, 3);
  __syncwarp();
  // The halves of a warp go different ways and work apart.
  if (lane < 16) {
    out[threadIdx.x] += 100000 * __popc(__ballot_sync(0x0000ffffu, lane % 2));
  } else {
    out[threadIdx.x] += 100000 * __popc(__ballot_sync(0xffff0000u, 1));
  }
}

__global__ void missing_thread(int* out) {
  if (threadIdx.x != 5) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[0] = 1;
    __syncthreads();
  }
}

__global__ void missing_lane(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = static_cast<int>(__ballot_sync(kAllLanes, 1));
}

// Lacks the barrier between writing and reading.
__global__ void race(int* out) {
  __shared__ int seen[64];
  seen[threadIdx.x] = 0;
  __syncthreads();
  seen[threadIdx.x] = 1;
  out[threadIdx.x] = seen[63 - threadIdx.x];
}

// Reads before others have written, but for a shuffle, which orders nothing.
__global__ void race_in_a_warp(int* out) {
  __shared__ int seen[64];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  seen[threadIdx.x] = lane;
  const int one = __shfl_sync(kAllLanes, 1, 0);
  out[threadIdx.x] = one + seen[threadIdx.x / 32 * 32 + 31 - lane];
}

__global__ void ordered_in_a_warp(int* out) {
  __shared__ int seen[64];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  seen[threadIdx.x] = lane;
  __syncwarp();
  const int other = seen[threadIdx.x / 32 * 32 + 31 - lane];
  __syncwarp();
  seen[threadIdx.x] = other;
  out[threadIdx.x] = seen[threadIdx.x];
}

// Writes where others may not have read yet.
__global__ void write_after_read(int* out) {
  __shared__ int seen[64];
  seen[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const int other = seen[63 - threadIdx.x];
  seen[threadIdx.x] = other;
  __syncthreads();
  out[threadIdx.x] = seen[threadIdx.x];
}

__global__ void race_in_global_memory(int* out) {
  out[threadIdx.x] = 1;
  if (threadIdx.x == 40) out[0] = out[1];
}

// Threads write the bytes of the same words, which is no race.
__global__ void neighbouring_bytes(int* out) {
  unsigned char* bytes = reinterpret_cast<unsigned char*>(out);
  bytes[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) out[63] = bytes[5];
}

// Atomics on the same words are no race either, whichever they are.
__global__ void atomics(int* out) {
  __shared__ unsigned bits, number;
  if (threadIdx.x == 0) bits = number = 0;
  __syncthreads();
  atomicOr(&bits, 1u << threadIdx.x % 32);
  atomicAdd(&number, 1u);
  __syncthreads();
  out[threadIdx.x] = bits == 0xffffffffu ? static_cast<int>(number) : -1;
}

__global__ void race_between_blocks(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<int>(blockIdx.x) + out[0];
}

// The last block to arrive reads what the others wrote.
__global__ void ordered_between_blocks(int* out) {
  if (threadIdx.x != 0) return;
  out[1 + blockIdx.x] = 5;
  __threadfence();
  if (atomicAdd(&out[0], 1) == static_cast<int>(gridDim.x) - 1) out[10] = out[1] + out[2];
}

__global__ void no_fence_between_blocks(int* out) {
  if (threadIdx.x != 0) return;
  out[1 + blockIdx.x] = 5;
  if (atomicAdd(&out[0], 1) == static_cast<int>(gridDim.x) - 1) out[10] = out[1] + out[2];
}

__global__ void three_barriers(int* out) {
  for (int round = 0; round < 3; ++round) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void uses_dynamic_shared(int* out) {
  MAM_DYNAMIC_SHARED(int, buffer);
  buffer[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = buffer[63 - threadIdx.x];
}

std::string message;

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* run(const char* name, int* out,
                                                                  int threads, long shared_bytes) {
  struct Named {
    const char* name;
    void (*kernel)(int*);
  };
  const Named all[] = {{"rank_odd", rank_odd},
                       {"warp_operations", warp_operations},
                       {"missing_thread", missing_thread},
                       {"missing_lane", missing_lane},
                       {"divergent_barrier", divergent_barrier},
                       {"race", race},
                       {"race_in_a_warp", race_in_a_warp},
                       {"ordered_in_a_warp", ordered_in_a_warp},
                       {"write_after_read", write_after_read},
                       {"race_in_global_memory", race_in_global_memory},
                       {"neighbouring_bytes", neighbouring_bytes},
                       {"atomics", atomics},
                       {"race_between_blocks", race_between_blocks},
                       {"ordered_between_blocks", ordered_between_blocks},
                       {"no_fence_between_blocks", no_fence_between_blocks},
                       {"three_barriers", three_barriers},
                       {"uses_dynamic_shared", uses_dynamic_shared}};
  message = "no such kernel";
  for (const Named& one : all) {
    if (std::string(one.name) != name) continue;
    message = "";
    try {
      const int blocks = std::string(name).find("between_blocks") == std::string::npos ? 1 : 2;
      mam::cuda::launch(one.name, one.kernel, blocks, threads, static_cast<size_t>(shared_bytes),
                        mam::Launch{}, out);
    } catch (const std::exception& error) {
      message = error.what();
    }
  }
  return message.c_str();
}
