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
                       {"uses_dynamic_shared", uses_dynamic_shared}};
  message = "no such kernel";
  for (const Named& one : all) {
    if (std::string(one.name) != name) continue;
    message = "";
    try {
      mam::cuda::launch(one.name, one.kernel, 1, threads, static_cast<size_t>(shared_bytes),
                        mam::Launch{}, out);
    } catch (const std::exception& error) {
      message = error.what();
    }
  }
  return message.c_str();
}
