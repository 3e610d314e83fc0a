// float16 on the host; see cuda_runtime.h.
#pragma once

#include <cstdint>

struct __half {
  _Float16 value;
};
static_assert(sizeof(__half) == 2);

inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
