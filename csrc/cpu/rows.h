// Rows of strided matrices in any of the accepted types, as the contiguous float32 and bytes that
// the kernels take.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "mam/ops.h"

namespace mam {
namespace cpu {

inline float float_of_bits(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline float from_bfloat16(uint16_t word) {
  return float_of_bits(static_cast<uint32_t>(word) << 16);
}

inline float from_float16(uint16_t word) {
  const uint32_t sign = static_cast<uint32_t>(word & 0x8000u) << 16, magnitude = word & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  // the exponent's bias by a product, which also makes denormals normal
  const float value = float_of_bits(magnitude << 13) * 0x1p112f;
  return sign ? -value : value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float value) {
  const uint32_t word = bits_of_float(value);
  if (value != value) return static_cast<uint16_t>(word >> 16 | 0x40u);
  return static_cast<uint16_t>((word + 0x7FFFu + (word >> 16 & 1u)) >> 16);
}

inline uint16_t to_float16(float value) {
  const uint32_t word = bits_of_float(value), sign = word >> 16 & 0x8000u,
                 magnitude = word & 0x7FFFFFFFu;
  if (value != value) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 2^16 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: in steps of 2^-24, by the addition's rounding
    const float stepped = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(stepped) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign |
                               ((magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13));
}

// Contiguous `count` values at `data`, `stride` apart; `buffer` is used where they are not float32
// in a row already.
inline const float* floats(const void* data, DType dtype, int64_t offset, int64_t stride,
                           int64_t count, float* buffer) {
  if (dtype == DType::float32) {
    const float* from = static_cast<const float*>(data) + offset;
    if (stride == 1) return from;
    for (int64_t i = 0; i < count; ++i) buffer[i] = from[i * stride];
    return buffer;
  }
  const uint16_t* from = static_cast<const uint16_t*>(data) + offset;
  if (dtype == DType::float16) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = from_float16(from[i * stride]);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = from_bfloat16(from[i * stride]);
  }
  return buffer;
}

inline const float* dense_row(const Values& values, int64_t row, float* buffer) {
  return floats(values.data, values.dtype, row * values.stride_row, values.stride_position,
                values.positions, buffer);
}

// Null stands for "all true".
inline const uint8_t* flag_row(const Flags& flags, int64_t row, int64_t positions,
                               uint8_t* buffer) {
  if (!flags.data) return nullptr;
  const uint8_t* from = flags.data + row * flags.stride_row;
  if (flags.stride_position == 1) return from;
  for (int64_t i = 0; i < positions; ++i) buffer[i] = from[i * flags.stride_position];
  return buffer;
}

// How many of the flags are true, which is any value but 0.
inline int64_t count_true(const uint8_t* flags, int64_t count) {
  constexpr uint64_t kOnes = 0x0101010101010101ull;
  int64_t total = 0, i = 0;
  while (i + 8 <= count) {
    uint64_t sums = 0;  // of each byte, up to 255
    for (const int64_t end = i + 8 * 255; i < end && i + 8 <= count; i += 8) {
      uint64_t word;
      std::memcpy(&word, flags + i, sizeof word);
      // the upper bit of a byte: its own, or the carry of the others
      sums += (((word & 0x7F * kOnes) + 0x7F * kOnes) | word) >> 7 & kOnes;
    }
    const uint64_t pairs = (sums & 0x00FF00FF00FF00FFull) + ((sums >> 8) & 0x00FF00FF00FF00FFull);
    total += static_cast<int64_t>((pairs * 0x0001000100010001ull) >> 48);
  }
  for (; i < count; ++i) total += flags[i] != 0;
  return total;
}

// Throws std::invalid_argument unless the indices of latents are in [0, num_latents).
inline void require_indices(const int64_t* latents, int64_t count, int64_t num_latents) {
  for (int64_t i = 0; i < count; ++i)
    if (latents[i] < 0 || latents[i] >= num_latents)
      throw std::invalid_argument("latents: expected indices in [0, " +
                                  std::to_string(num_latents) + "); got " +
                                  std::to_string(latents[i]));
}

}  // namespace cpu
}  // namespace mam
