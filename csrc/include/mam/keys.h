// From random bits and weights to the keys of the exponential race: the k smallest keys of a row
// are the k positions drawn.
#pragma once

#include <cmath>
#include <cstdint>

#include "mam/philox.h"

namespace mam {

constexpr float kLargestUniform =
    0x1.fffffep-1f;  // the largest float32 below 1: a uniform of 1 would make the key infinite

// Weights further than this below the largest of their row count as equal to it times this; no key
// of a drawable position overflows.
constexpr float kSmallestRelativeWeight = 1e-37f;

// v = (r + 1/2) / 2^32, in (0, 1). Small v, which decide the race, keep all 32 bits.
MAM_HOST_DEVICE inline float uniform(uint32_t bits) {
  const float v = (static_cast<float>(bits) + 0.5f) * 0x1p-32f;
  return v < kLargestUniform ? v : kLargestUniform;
}

// A weight can be drawn when it is positive and finite after eps; NaN compares false.
MAM_HOST_DEVICE inline bool drawable(float weight, float eps) {
  return weight >= 0.0f && weight + eps > 0.0f && weight <= 3.402823466e38f;
}

// ((weight + eps) / (largest + eps)) ** inverse_temperature, in [kSmallestRelativeWeight, 1].
MAM_HOST_DEVICE inline float relative_weight(float weight, float largest, float eps,
                                             float inverse_temperature) {
  float ratio = (weight + eps) / (largest + eps);
  if (inverse_temperature != 1.0f) ratio = exp2f(inverse_temperature * log2f(ratio));
  return ratio > kSmallestRelativeWeight ? ratio : kSmallestRelativeWeight;
}

// E / w with E = -log1p(-v): standard exponential. The k smallest are a draw without replacement in
// proportion to w.
MAM_HOST_DEVICE inline float race_key(uint32_t bits, float relative_weight) {
  return -log1pf(-uniform(bits)) / relative_weight;
}

}  // namespace mam
