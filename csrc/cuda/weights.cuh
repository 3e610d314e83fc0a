// The weights of one row: of any type and strides, four at a time, and a sample of them.
#pragma once

#include "interval.cuh"
#include "memory.cuh"

namespace mam::cuda {

// One row of weights, of any type and strides.
struct Weights {
  const void* data;
  DType dtype;
  int64_t first, stride;
  FlagRow valid;
  float eps;

  // A weight that cannot be drawn is reported as -1.
  __device__ float operator[](int64_t l) const {
    if (!valid[l]) return -1.0f;
    const float weight = load(data, dtype, first + l * stride);
    return drawable(weight, eps) ? weight : -1.0f;
  }
};

inline bool aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Whether four float32 numbers of every row lie in one piece of memory.
inline bool by_fours(const Values& values) {
  return values.dtype == DType::float32 && values.stride_position == 1 &&
         values.positions % 4 == 0 && values.stride_row % 4 == 0 && aligned(values.data, 16);
}

// The same of flags, if there are any.
inline bool by_fours(const Flags& flags) {
  return flags.data == nullptr ||
         (flags.stride_position == 1 && flags.stride_row % 4 == 0 && aligned(flags.data, 4));
}

// Four weights at a time. Of a whole row, four lie in one piece of memory.
template <bool Whole, bool Flagged>
struct Quads {
  const Weights& weights;
  int64_t positions;

  __device__ __forceinline__ float4 operator()(int64_t quad) const {
    if constexpr (Whole) {
      const float4* const data =
          reinterpret_cast<const float4*>(static_cast<const float*>(weights.data) + weights.first);
      return __ldg(data + quad);
    } else {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = quad * 4 + i < positions ? weights[quad * 4 + i] : -1.0f;
      return make_float4(x[0], x[1], x[2], x[3]);
    }
  }
  // 255 in the bytes of the positions that can be drawn, as far as flags say.
  __device__ __forceinline__ uint32_t allowed(int64_t quad) const {
    if constexpr (!Flagged) return 0xFFFFFFFFu;
    return bytes_not_zero(__ldg(reinterpret_cast<const uint32_t*>(weights.valid.data) + quad));
  }
  __device__ __forceinline__ void write(uint8_t* mask, int64_t quad, uint32_t bytes) const {
    if constexpr (Whole) {
      reinterpret_cast<uint32_t*>(mask)[quad] = bytes;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (quad * 4 + i < positions) mask[quad * 4 + i] = bytes >> (8 * i) & 1u;
    }
  }
};

// Calls visit(quad, weights, bytes) for every four positions of this thread; the bytes are 1 where
// a flag allows the position.
template <bool Whole, bool Flagged, typename Visit>
__device__ __forceinline__ void for_each_quad(const Quads<Whole, Flagged>& quads,
                                              const Visit& visit) {
  const int count = static_cast<int>((quads.positions + 3) / 4);
#pragma unroll 4
  for (int quad = threadIdx.x; quad < count; quad += kRaceThreads) {
    const float4 weight = quads(quad);
    const float x[4] = {weight.x, weight.y, weight.z, weight.w};
    visit(quad, x, quads.allowed(quad) & 0x01010101u);
  }
}

// The weights of `threads` threads' share of a sample, -1 where they cannot be drawn.
template <bool Whole, bool Flagged>
__device__ __forceinline__ void take_sample(const Quads<Whole, Flagged>& quads, int threads,
                                            float (&sample)[4 * kSampleQuads]) {
  const int64_t whole = quads.positions / 4;
#pragma unroll
  for (int i = 0; i < kSampleQuads; ++i) {
    const int64_t quad = whole * (i * threads + threadIdx.x) / (kSampleQuads * threads);
    const float4 x = quads(quad);
    const uint32_t allowed = quads.allowed(quad);
    const float each[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sample[4 * i + j] =
          drawable(each[j], quads.weights.eps) && (allowed >> (8 * j) & 1u) ? each[j] : -1.0f;
  }
}

}  // namespace mam::cuda
