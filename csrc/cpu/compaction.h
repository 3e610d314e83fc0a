// From a row of values to those that are not zero.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

static int64_t compact(const float* row, const uint8_t* valid, int64_t positions, float* value,
                       int32_t* position, int64_t* zeros) {
  float* const begin = value;
  int64_t num_zeros = 0, l = 0;
  Int index = lane_numbers();
  for (; l + kFloats <= positions; l += kFloats, index += kFloats) {
    const Float x = load<Float>(row + l);
    uint32_t nonzero = lane_bits(x != 0.0f), exists = (1ull << kFloats) - 1;
    if (valid) nonzero &= exists = lane_bits(flag_lanes(valid + l));
    num_zeros += __builtin_popcount(exists & ~nonzero);
    append(position, index, nonzero);
    const float* const end = append(value, x, nonzero);
    position += end - value;
    value += end - value;
  }
  for (; l < positions; ++l) {
    if (valid && !valid[l]) continue;
    if (row[l] == 0.0f) {
      ++num_zeros;
    } else {
      *value++ = row[l];
      *position++ = static_cast<int32_t>(l);
    }
  }
  *zeros = num_zeros;
  return value - begin;
}

static bool range(const float* value, int64_t count, float* low, float* high) {
  Float smallest = splat<Float>(__builtin_inff()), largest = -smallest, nan{};
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) {
    const Float x = load<Float>(value + i);
    smallest = x < smallest ? x : smallest;
    largest = x > largest ? x : largest;
    nan += x * 0.0f;  // 0 unless x is NaN or infinite
  }
  float least = __builtin_inff(), most = -least, bad = 0;
  for (; i < count; ++i) {
    least = value[i] < least ? value[i] : least;
    most = value[i] > most ? value[i] : most;
    bad += value[i] * 0.0f;
  }
  for (int lane = 0; lane < kFloats; ++lane) {
    least = smallest[lane] < least ? smallest[lane] : least;
    most = largest[lane] > most ? largest[lane] : most;
    bad += nan[lane];
  }
  *low = least;
  *high = most;
  return bad == 0.0f;
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
