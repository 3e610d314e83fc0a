// The part of CUDA that csrc/cuda uses, on the host: for tests alone, so that the kernels' own
// source runs without a GPU.
//
// A grid is run block by block, and the threads of a block are fibers of one host thread
// (scheduler.cpp). A thread runs until it waits for others, at a barrier or in a warp's exchange,
// and then the next one runs. What would hang or be undefined on a GPU is an error: a barrier that
// not every thread of the block reaches, or that they reach at different places of the source; a
// warp operation without one of the lanes that its mask names.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static const
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __forceinline__ inline
#define MAM_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(mam_shim::dynamic_shared())

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace mam_shim {

// The place in the source of a call, so that threads which wait at different places are told apart.
struct Place {
  const char* file;
  int line;
};

struct Kernel {
  void (*run)(void* arguments);
  void* arguments;
};

cudaError_t run_grid(const cudaLaunchConfig_t& config, const Kernel& kernel);
void* dynamic_shared();
void allow_dynamic_shared(size_t bytes);
const char* last_error();

// For the detector of races (races.cpp).
void atomic(const void* address, size_t bytes);
void fence();

// Waits for every thread of the block.
void block_barrier(Place place);
// Leaves `size` bytes for the other lanes of the warp and waits for those that `mask` names; what
// lane i left is then at from_lane(i).
void exchange(unsigned mask, const void* value, size_t size, Place place);
const void* from_lane(int lane);
int lane();

template <typename T>
T read_lane(int lane) {
  T value;
  std::memcpy(&value, from_lane(lane), sizeof(T));
  return value;
}

}  // namespace mam_shim

// Barriers that the threads of the last block have met.
extern "C" unsigned mam_shim_barriers();

// The caller's place, as default arguments. Two plain ones: GCC takes the place of the declaration
// inside a braced one.
#define MAM_SHIM_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(MAM_SHIM_CALLER) { mam_shim::block_barrier({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, nullptr, 0, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int flag, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &flag, sizeof(flag), {file, line});
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1u && mam_shim::read_lane<int>(i) != 0) ballot |= 1u << i;
  }
  return ballot;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &value, sizeof(T), {file, line});
  return mam_shim::read_lane<T>(source & 31);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &value, sizeof(T), {file, line});
  return mam_shim::read_lane<T>(mam_shim::lane() ^ bits);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &value, sizeof(T), {file, line});
  return mam_shim::read_lane<T>(mam_shim::lane() < distance ? mam_shim::lane()
                                                            : mam_shim::lane() - distance);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &value, sizeof(T), {file, line});
  return mam_shim::read_lane<T>(mam_shim::lane() + distance > 31 ? mam_shim::lane()
                                                                 : mam_shim::lane() + distance);
}

// Not instrumented: an atomic is told to the detector of races as such.
#define MAM_SHIM_ATOMIC __attribute__((no_sanitize("thread"), noinline))

template <typename T>
MAM_SHIM_ATOMIC T atomicAdd(T* address, typename std::common_type<T>::type value) {
  mam_shim::atomic(address, sizeof(T));
  const T before = *address;
  *address = before + value;
  return before;
}

inline void __threadfence() { mam_shim::fence(); }

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, MAM_SHIM_CALLER) {
  mam_shim::exchange(mask, &value, sizeof(value), {file, line});
  unsigned sum = 0;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1u) sum += mam_shim::read_lane<unsigned>(i);
  }
  return sum;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
MAM_SHIM_ATOMIC inline unsigned atomicOr(unsigned* address, unsigned value) {
  mam_shim::atomic(address, sizeof(unsigned));
  const unsigned before = *address;  // std::exchange would be instrumented
  *address = before | value;
  return before;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __expf(float x) { return expf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN: 0
inline float __uint_as_float(unsigned x) {
  float value;
  std::memcpy(&value, &x, sizeof(value));
  return value;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return mam_shim::last_error(); }

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  mam_shim::allow_dynamic_shared(static_cast<size_t>(bytes));
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Converted once and copied for each thread, as the parameters of a kernel are.
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto run = [](void* opaque) {
    const Call& that = *static_cast<const Call*>(opaque);
    std::apply(that.kernel, that.arguments);
  };
  return mam_shim::run_grid(*config, {run, &call});
}
