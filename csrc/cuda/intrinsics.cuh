// Single instructions that C++ has no word for; the host build of the tests has its own versions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mam::cuda {

#ifdef MAM_CUDA_SHIM
inline float power_of_two(float x) { return exp2f(x); }
inline float logarithm_of_two(float x) { return log2f(x); }
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15u;
    uint32_t byte = static_cast<uint32_t>(both >> (8 * (nibble & 7u))) & 255u;
    if (nibble & 8u) byte = byte & 128u ? 255u : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned sum_of_bytes(uint32_t bytes, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += bytes >> (8 * i) & 255u;
  return sum;
}
#else
// 2^x to 2^-22 of itself; 0 below the normal numbers, NaN of NaN.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float logarithm_of_two(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Each nibble of the selector takes a byte of (b, a), or where its highest bit is set eight copies
// of that byte's sign.
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
}
__device__ __forceinline__ unsigned sum_of_bytes(uint32_t bytes, unsigned sum) {
  return __dp4a(bytes, 0x01010101u, sum);
}
#endif

// c += a b for a of 8 by 4 and b of 4 by 8 in float64, one warp: lane 4 i + k has a[i][k], lane
// 4 j + k has b[k][j], and lane 4 i + j has c[i][2 j] and c[i][2 j + 1].
__device__ __forceinline__ void multiply_add(double (&c)[2], double a, double b) {
#ifdef MAM_CUDA_SHIM
  const int lane = static_cast<int>(threadIdx.x) % 32, i = lane / 4, j = 2 * (lane % 4);
  for (int k = 0; k < 4; ++k) {
    const double left = __shfl_sync(0xffffffffu, a, 4 * i + k);
    c[0] += left * __shfl_sync(0xffffffffu, b, 4 * j + k);
    c[1] += left * __shfl_sync(0xffffffffu, b, 4 * (j + 1) + k);
  }
#else
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
#endif
}

// The sum over a warp, in every lane: two products with ones in place of ten exchanges.
__device__ __forceinline__ double warp_total(double x) {
  double fours[2] = {0.0, 0.0}, total[2] = {0.0, 0.0};
  multiply_add(fours, 1.0, x);
  multiply_add(total, 1.0, fours[0] + fours[1]);
  return total[0];
}

// 255 in the bytes of four numbers whose bit 23 is set, 0 in the others.
__device__ __forceinline__ uint32_t bytes_of_bit_23(const uint32_t (&x)[4]) {
  return permute(permute(x[0], x[1], 0x00EAu), permute(x[2], x[3], 0x00EAu), 0x5410u);
}

// 255 in the bytes that are not zero.
__device__ __forceinline__ uint32_t bytes_not_zero(uint32_t x) {
  const uint32_t high = ((x & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | x;
  return permute(high, 0u, 0xBA98u);
}

}  // namespace mam::cuda
