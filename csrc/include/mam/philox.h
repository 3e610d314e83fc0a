// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011), for host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(MAM_CUDA_SHIM)
#define MAM_HOST_DEVICE __host__ __device__
#else
#define MAM_HOST_DEVICE \
  static  // a copy for each file: the CPU kernels are compiled for several instruction sets, which
          // must not be merged
#endif

namespace mam {

struct PhiloxWords {
  uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Streams of the counter's last word: one for each thing that is drawn.
constexpr uint32_t kStreamPositions = 0, kStreamLatents = 1;

MAM_HOST_DEVICE inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

MAM_HOST_DEVICE inline PhiloxWords philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2,
                                          uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t high0 = multiply_high(kPhiloxMultiplier0, c0), low0 = kPhiloxMultiplier0 * c0;
    const uint32_t high1 = multiply_high(kPhiloxMultiplier1, c2), low1 = kPhiloxMultiplier1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace mam
