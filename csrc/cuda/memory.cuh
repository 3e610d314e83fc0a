// Elements of any supported type as float32, and flags that may be absent. The type is a run-time
// value: the branch on it is the same for every thread, and a kernel is compiled once instead of
// once a type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "mam/ops.h"

namespace mam::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline float load(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::float32) return static_cast<const float*>(data)[index];
  if (dtype == DType::float16) return to_float(static_cast<const __half*>(data)[index]);
  return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
}

__device__ inline void store(void* data, DType dtype, int64_t index, float x) {
  if (dtype == DType::float32) {
    static_cast<float*>(data)[index] = x;
  } else if (dtype == DType::float16) {
    static_cast<__half*>(data)[index] = __float2half_rn(x);
  } else {
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(x);
  }
}

// One row of Flags.
struct FlagRow {
  const uint8_t* data;
  int64_t stride;

  __device__ bool operator[](int64_t position) const {
    return data == nullptr || data[position * stride] != 0;
  }
};

__device__ inline FlagRow flag_row(const Flags& flags, int64_t row) {
  return {flags.data == nullptr ? nullptr : flags.data + row * flags.stride_row,
          flags.stride_position};
}

// A matrix of float32 in one piece.
inline Values contiguous(const float* data, int64_t rows, int64_t positions) {
  return {data, DType::float32, rows, positions, positions, 1, nullptr, nullptr, false};
}

// The nearest index in [0, count): indices given by a caller are not checked on a GPU, and must not
// be followed out of bounds.
__device__ inline int64_t bounded(int64_t index, int64_t count) {
  return index < 0 ? 0 : index < count ? index : count - 1;
}

__device__ inline int64_t load_index(const void* data, bool index64, int64_t i) {
  return index64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
}

}  // namespace mam::cuda
