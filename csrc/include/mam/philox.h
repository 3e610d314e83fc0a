// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011), for host and device.
#pragma once

#include <cstdint>

#include "mam/streams.h"

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

// Both halves of the product of two words.
MAM_HOST_DEVICE inline uint64_t wide_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint64_t product;  // from plain C++, nvcc 13 makes a product of 64 bits and additions of zero
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

// `Flip` is combined with every word by exclusive or: all ones give the complements, two of which
// cost nothing.
template <uint32_t Flip = 0>
MAM_HOST_DEVICE inline PhiloxWords philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2,
                                          uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = wide_product(kPhiloxMultiplier0, c0),
                   product1 = wide_product(kPhiloxMultiplier1, c2);
    const uint32_t flip = round == kPhiloxRounds - 1 ? Flip : 0;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ (k0 ^ flip);
    c1 = static_cast<uint32_t>(product1) ^ flip;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ (k1 ^ flip);
    c3 = static_cast<uint32_t>(product0) ^ flip;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace mam
