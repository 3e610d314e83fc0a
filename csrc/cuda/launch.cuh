// Starting a kernel on the caller's stream; an error becomes an exception that names the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "mam/ops.h"

// Shared memory whose size the launch decides.
#ifndef MAM_DYNAMIC_SHARED
#define MAM_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace mam::cuda {

constexpr size_t kSharedWithoutOptIn =
    32 * 1024;  // the limit without is 48 KB, static and dynamic together

inline void check(cudaError_t status, const char* kernel) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the error is not reported again by whoever asks next
  throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
            size_t shared_bytes, const Launch& where, Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string(name) +
                             ": the problem needs more than 2^31 - 1 thread blocks");
  if (shared_bytes > kSharedWithoutOptIn) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), limit,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(where.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mam::cuda
