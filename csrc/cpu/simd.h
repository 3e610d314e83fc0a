// Vectors as wide as the instruction set has, by the compiler's vector extensions; intrinsics only
// where these fall short.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define MAM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MAM_VECTOR_BYTES 32
#else
#define MAM_VECTOR_BYTES 16
#endif

namespace mam {
namespace cpu {
namespace MAM_ISA {

#define MAM_ALWAYS __attribute__((always_inline))
#define MAM_INLINE static inline MAM_ALWAYS
#define MAM_APART __attribute__((noinline))

// Lanes of two LongWord vectors by number.
#if defined(__clang__)
#define MAM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MAM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, LongWord{__VA_ARGS__})
#endif

template <typename T, int Bytes = MAM_VECTOR_BYTES>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
};

constexpr int kFloats = MAM_VECTOR_BYTES / 4, kDoubles = MAM_VECTOR_BYTES / 8;

using Float = VectorOf<float>::type;
using Int = VectorOf<int32_t>::type;
using Word = VectorOf<uint32_t>::type;
using Double = VectorOf<double>::type;
using Long = VectorOf<int64_t>::type;
using LongWord = VectorOf<uint64_t>::type;
using HalfFloat =
    VectorOf<float, MAM_VECTOR_BYTES / 2>::type;  // as many floats as a Double has lanes

template <typename Vector, typename T>
MAM_INLINE Vector load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T, sizeof(Vector)>::unaligned*>(from);
}

template <typename T, typename Vector>
MAM_INLINE void store(T* to, Vector vector) {
  *reinterpret_cast<typename VectorOf<T, sizeof(Vector)>::unaligned*>(to) = vector;
}

template <typename Vector, typename T>
MAM_INLINE Vector splat(T value) {
  return Vector{} + value;
}

template <typename To, typename From>
MAM_INLINE To bits(From vector) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  return reinterpret_cast<To>(vector);
}

MAM_INLINE Double to_double(HalfFloat vector) { return __builtin_convertvector(vector, Double); }
MAM_INLINE HalfFloat to_float(Double vector) { return __builtin_convertvector(vector, HalfFloat); }
MAM_INLINE Float to_float(Word vector) {
#if defined(__AVX512F__)
  return reinterpret_cast<Float>(_mm512_cvtepu32_ps(reinterpret_cast<__m512i>(vector)));
#else
  // Exact halves, one rounding, as the conversion of a scalar has.
  const Float high = __builtin_convertvector(bits<Int>(vector >> 16), Float),
              low = __builtin_convertvector(bits<Int>(vector & 0xFFFFu), Float);
  return high * 65536.0f + low;
#endif
}

MAM_INLINE Int lane_numbers() {
  Int lanes{};
  for (int i = 0; i < kFloats; ++i) lanes[i] = i;
  return lanes;
}

MAM_INLINE double sum(Double vector) {
  double total = 0;
  for (int i = 0; i < kDoubles; ++i) total += vector[i];
  return total;
}

MAM_INLINE int64_t sum(Int vector) {
  int64_t total = 0;
  for (int i = 0; i < kFloats; ++i) total += vector[i];
  return total;
}

MAM_INLINE float sum(Float vector) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(vector));
#else
  float part[kFloats];
  store(part, vector);
  for (int width = kFloats / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
#endif
}

// One bit for each lane; of the type that keeps them in the registers for it, where there are any.
#if defined(__AVX512F__)
using LaneBits = __mmask16;
#else
using LaneBits = uint32_t;
#endif

// One bit for each lane of a comparison.
MAM_INLINE LaneBits lane_bits(Int comparison) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(comparison));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(comparison)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(comparison)));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kFloats; ++i) mask |= (static_cast<uint32_t>(comparison[i]) & 1u) << i;
  return mask;
#endif
}

// One bit for each lane in which a < b. AVX-512 compares into registers of bits; from lane_bits(a <
// b) gcc spreads them over lanes first.
MAM_INLINE LaneBits less_bits(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_LT_OQ);
#else
  return lane_bits(a < b);
#endif
}

MAM_INLINE LaneBits less_bits(Word a, Word b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
  return lane_bits(a < b);
#endif
}

MAM_INLINE LaneBits less_bits(Int a, Int b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
  return lane_bits(a < b);
#endif
}

// One byte for each lane, 1 where its bit is set.
MAM_INLINE void store_flags(uint8_t* to, LaneBits lanes) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_maskz_set1_epi8(lanes, 1));
#elif defined(__AVX2__)
  // seven bits are spread by a product that moves bit i by 7 i; the eighth would meet another
  const uint64_t bytes = ((lanes & 0x7Full) * 0x0002040810204081ull & 0x0101010101010101ull) |
                         static_cast<uint64_t>(lanes >> 7) << 56;
  __builtin_memcpy(to, &bytes, sizeof bytes);
#else
  const uint32_t bytes = lanes * 0x00204081u & 0x01010101u;
  __builtin_memcpy(to, &bytes, sizeof bytes);
#endif
}

// Flags of kFloats positions as lanes, all ones where set.
MAM_INLINE Int flag_lanes(const uint8_t* flags) {
#if defined(__AVX512F__)
  const Int lanes = reinterpret_cast<Int>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(flags))));
#elif defined(__AVX2__)
  const Int lanes = reinterpret_cast<Int>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(flags))));
#else
  Int lanes{};
  for (int i = 0; i < kFloats; ++i) lanes[i] = flags[i];
#endif
  return lanes != 0;
}

// The same as bits.
MAM_INLINE LaneBits flag_bits(const uint8_t* flags) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(flags));
  return _mm_test_epi8_mask(bytes, bytes);
#else
  return lane_bits(flag_lanes(flags));
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each of the 256 sets of lanes, the numbers of those in it, the lowest first.
struct LaneNumbers {
  uint8_t number[256][8];
};

constexpr LaneNumbers lane_numbers_by_bits() {
  LaneNumbers table{};
  for (int bits = 0; bits < 256; ++bits)
    for (int lane = 0, count = 0; lane < 8; ++lane)
      if (bits >> lane & 1) table.number[bits][count++] = static_cast<uint8_t>(lane);
  return table;
}

static constexpr LaneNumbers kLaneNumbers = lane_numbers_by_bits();
#endif

// The lanes whose bit is set, one after the other; returns the end. May write a whole vector.
template <typename T, typename Vector>
MAM_INLINE T* append(T* to, Vector vector, LaneBits lanes) {
  static_assert(sizeof(T) == 4, "lanes of 32 bits");
#if defined(__AVX512F__)
  const __m512i packed = _mm512_maskz_compress_epi32(lanes, reinterpret_cast<__m512i>(vector));
  _mm512_storeu_si512(to, packed);
  return to + __builtin_popcount(lanes);
#elif defined(__AVX2__)
  const __m256i order = _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLaneNumbers.number[lanes])));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(vector), order));
  return to + __builtin_popcount(lanes);
#else
  for (; lanes; lanes &= lanes - 1) *to++ = vector[__builtin_ctz(lanes)];
  return to;
#endif
}

// Products of the low 32 bits of each 64-bit lane.
MAM_INLINE LongWord multiply_wide(LongWord a, LongWord b) {
#if defined(__AVX512F__)
  return reinterpret_cast<LongWord>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<LongWord>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<LongWord>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull);
#endif
}

// The high 32 bits of each 64-bit lane where the low ones are; above them, whatever comes cheapest.
// A shuffle: it runs beside the multiplications, whose port a shift would take.
MAM_INLINE LongWord high_halves(LongWord vector) {
  const Word words = bits<Word>(vector);
#if defined(__clang__)
#define MAM_SHUFFLE_WORDS(...) __builtin_shufflevector(words, words, __VA_ARGS__)
#else
#define MAM_SHUFFLE_WORDS(...) __builtin_shuffle(words, Word{__VA_ARGS__})
#endif
#if MAM_VECTOR_BYTES == 64
  return bits<LongWord>(MAM_SHUFFLE_WORDS(1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15));
#elif MAM_VECTOR_BYTES == 32
  return bits<LongWord>(MAM_SHUFFLE_WORDS(1, 1, 3, 3, 5, 5, 7, 7));
#else
  return bits<LongWord>(MAM_SHUFFLE_WORDS(1, 1, 3, 3));
#endif
#undef MAM_SHUFFLE_WORDS
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
