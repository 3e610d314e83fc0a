// Random bits to the keys of the exponential race, and the k smallest keys. Exact definitions:
// mam/keys.h.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"
#include "mam/keys.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

// Counters in one LongWord vector; their four words are the bits of kStep positions in a row.
constexpr int kStep = 4 * kDoubles;

// Counters' vectors that are worked on together: a round waits for its multiplications, and the
// other vectors fill the time.
constexpr int kChains = MAM_VECTOR_BYTES == 64 ? 4 : 2;  // as many as there are registers for

// The random words of a row. What is the same for the whole row is computed once and spread over
// lanes: of a counter only the first word changes along a row, so that half of the first two rounds
// is the same for all positions.
struct Philox {
  LongWord key0[kPhiloxRounds], key1[kPhiloxRounds];
  LongWord lanes;
  LongWord first2;                     // c2 after the first round is high(multiplier0 c0) ^ this
  LongWord second0, second2, second3;  // after the second, c0 is high(product1) ^ second0, c2 is c3
                                       // ^ second2, and c3 is second3
};

MAM_INLINE void start(const RowDraw& draw, Philox* philox) {
  uint32_t key0[kPhiloxRounds], key1[kPhiloxRounds];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    key0[round] = static_cast<uint32_t>(draw.seed) + static_cast<uint32_t>(round) * kPhiloxWeyl0;
    key1[round] =
        static_cast<uint32_t>(draw.seed >> 32) + static_cast<uint32_t>(round) * kPhiloxWeyl1;
    philox->key0[round] = splat<LongWord>(uint64_t{key0[round]});
    philox->key1[round] = splat<LongWord>(uint64_t{key1[round]});
  }
  LongWord lanes{};
  for (int i = 0; i < kDoubles; ++i) lanes[i] = static_cast<uint64_t>(i);
  philox->lanes = lanes;

  const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * draw.step;
  const uint32_t c0 = static_cast<uint32_t>(product1 >> 32) ^ draw.sample_id ^ key0[0];
  const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c0;
  philox->first2 = splat<LongWord>(uint64_t{draw.stream ^ key1[0]});
  philox->second0 = splat<LongWord>(product1 ^ key0[1]);
  philox->second2 = splat<LongWord>((product0 >> 32) ^ key1[1]);
  philox->second3 = splat<LongWord>(product0);
}

// The words of Chains * kDoubles counters, in the order of the positions: each two vectors hold
// those of kDoubles.
template <int Chains>
MAM_INLINE void words_of(const Philox& philox, int64_t position, Word (&words)[2 * Chains]) {
  const LongWord multiplier0 = splat<LongWord>(uint64_t{kPhiloxMultiplier0}),
                 multiplier1 = splat<LongWord>(uint64_t{kPhiloxMultiplier1});
  LongWord c0[Chains], c1[Chains], c2[Chains], c3[Chains];
  // the high halves of the lanes hold leftovers, which the next product ignores
  for (int i = 0; i < Chains; ++i) {
    const LongWord counter =
        philox.lanes + (static_cast<uint64_t>(position) / 4 + static_cast<uint64_t>(i * kDoubles));
    const LongWord product0 = multiply_wide(multiplier0, counter);
    const LongWord product1 = multiply_wide(multiplier1, high_halves(product0) ^ philox.first2);
    c0[i] = high_halves(product1) ^ philox.second0;
    c1[i] = product1;
    c2[i] = product0 ^ philox.second2;
    c3[i] = philox.second3;
  }
#pragma GCC unroll 8
  for (int round = 2; round < kPhiloxRounds; ++round) {
    for (int i = 0; i < Chains; ++i) {
      const LongWord product0 = multiply_wide(multiplier0, c0[i]),
                     product1 = multiply_wide(multiplier1, c2[i]);
      c0[i] = high_halves(product1) ^ c1[i] ^ philox.key0[round];
      c2[i] = high_halves(product0) ^ c3[i] ^ philox.key1[round];
      c1[i] = product1;
      c3[i] = product0;
    }
  }
  for (int i = 0; i < Chains; ++i) {
    // words 0 1, and 2 3, of each counter
    const LongWord low = (c0[i] & 0xFFFFFFFFull) | (c1[i] << 32),
                   high = (c2[i] & 0xFFFFFFFFull) | (c3[i] << 32);
#if MAM_VECTOR_BYTES == 64
    words[2 * i] = bits<Word>(MAM_SHUFFLE(low, high, 0, 8, 1, 9, 2, 10, 3, 11));
    words[2 * i + 1] = bits<Word>(MAM_SHUFFLE(low, high, 4, 12, 5, 13, 6, 14, 7, 15));
#elif MAM_VECTOR_BYTES == 32
    words[2 * i] = bits<Word>(MAM_SHUFFLE(low, high, 0, 4, 1, 5));
    words[2 * i + 1] = bits<Word>(MAM_SHUFFLE(low, high, 2, 6, 3, 7));
#else
    words[2 * i] = bits<Word>(MAM_SHUFFLE(low, high, 0, 2));
    words[2 * i + 1] = bits<Word>(MAM_SHUFFLE(low, high, 1, 3));
#endif
  }
}

// As uniform() of mam/keys.h: scaling by a power of two commutes with rounding.
MAM_INLINE Float uniform_of(Word random) {
  const Int v = bits<Int>(to_float(random) * 0x1p-32f + 0x1p-33f);
  return bits<Float>(v < 0x3F7FFFFF ? v : splat<Int>(0x3F7FFFFF));  // kLargestUniform
}

// Calls body(i, words) for the random words of the kFloats positions from first + i on, for all i
// below `count`, in whole steps.
template <typename Body>
MAM_INLINE void for_words(const Philox& philox, int64_t first, int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kChains * kStep <= count; i += kChains * kStep) {
    Word words[2 * kChains];
    words_of<kChains>(philox, first + i, words);
    for (int j = 0; j < 2 * kChains; ++j) body(i + j * kFloats, words[j]);
  }
  for (; i < count; i += kStep) {
    Word words[2];
    words_of<1>(philox, first + i, words);
    for (int j = 0; j < 2; ++j) body(i + j * kFloats, words[j]);
  }
}

// The uniforms of [first, first + count), as bits, in whole steps.
static void fill_uniforms(const Philox& philox, int64_t first, int64_t count, int32_t* uniforms) {
  for_words(philox, first, count, [&](int64_t i, Word words) MAM_ALWAYS {
    store(uniforms + i, bits<Int>(uniform_of(words)));
  });
}

// Rows are worked on in blocks that stay in the first-level cache, one short loop after the other:
// each has more independent work in flight than one long loop.
constexpr int64_t kBlockPositions = 1024;

template <bool Value>
struct Constant {
  static constexpr bool value = Value;
};

// Calls body(position, weight, flags, has_flags) for every kFloats positions in [first, last), the
// end of which is the row's or a whole block. The rest of a row comes as copies, padded with flags
// of 0; hence has_flags, a Constant, may be true for it alone.
template <typename Body>
MAM_INLINE void for_vectors(const float* weight, const uint8_t* flags, int64_t first, int64_t last,
                            const Body& body) {
  const int64_t whole = first + (last - first) / kFloats * kFloats;
  if (flags) {
    for (int64_t l = first; l < whole; l += kFloats)
      body(l, weight + l, flags + l, Constant<true>());
  } else {
    for (int64_t l = first; l < whole; l += kFloats) body(l, weight + l, flags, Constant<false>());
  }
  if (whole == last) return;
  float last_weight[kFloats] = {};
  uint8_t last_flags[kFloats] = {};
  for (int64_t l = whole; l < last; ++l) {
    last_weight[l - whole] = weight[l];
    last_flags[l - whole] = !flags || flags[l];
  }
  body(whole, last_weight, last_flags, Constant<true>());
}

// All ones where a weight may be drawn; as drawable() of mam/keys.h.
MAM_INLINE Int drawable_lanes(Float weight, float eps) {
  return (weight >= 0.0f) & (weight + eps > 0.0f) & (weight <= 0x1.fffffep127f);
}

static float largest_drawable(const float* weight, const uint8_t* flags, int64_t positions,
                              float eps) {
  Int largest{};  // as the bits of a float >= 0
  for_vectors(weight, flags, 0, positions,
              [&](int64_t, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                const Float x = load<Float>(w);
                Int counts = drawable_lanes(x, eps);
                if (has_flags.value) counts &= flag_lanes(f);
                const Int candidate = bits<Int>(x) & 0x7FFFFFFF & counts;
                largest = candidate > largest ? candidate : largest;
              });
  int32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result = largest[i] > result ? largest[i] : result;
  return bits<Float>(splat<Int>(result))[0];
}

// The map of weights to relative weights: ((w + eps) * prescale) * inverse, raised to the inverse
// temperature. The prescale keeps the inverse of very small and very large weights a normal number.
struct Relative {
  float eps, prescale, inverse, inverse_temperature;
};

MAM_INLINE Relative relative_to(float largest, const Weighting& weighting) {
  const float top = largest + weighting.eps;
  const float prescale = top < 1e-30f ? 0x1p100f : top > 1e30f ? 0x1p-100f : 1.0f;
  return {weighting.eps, prescale, 1.0f / (top * prescale), weighting.inverse_temperature};
}

MAM_INLINE Float relative_weight(Float weight, const Relative& relative) {
  Float ratio = ((weight + relative.eps) * relative.prescale) * relative.inverse;
  if (relative.inverse_temperature != 1.0f) {
    ratio = ratio > 0x1p-126f ? ratio : splat<Float>(0x1p-126f);
    ratio = power_of(ratio, relative.inverse_temperature);
  }
  return ratio > kSmallestRelativeWeight ? ratio : splat<Float>(kSmallestRelativeWeight);
}

// How many lanes were true, of sums of comparisons.
static int64_t total_of(Int counts) { return -sum(counts); }

// Replaces uniforms by the keys of their weights; returns how many can be drawn. Not inlined: in
// other code the compiler might contract other products and sums into one rounding, and a key would
// depend on the caller.
static MAM_APART int64_t to_keys(const float* weight, const uint8_t* flags, int64_t count,
                                 const Relative& relative, int32_t* keys) {
  Int drawable{};
  for_vectors(weight, flags, 0, count,
              [&](int64_t l, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                const Float x = load<Float>(w);
                Int can = drawable_lanes(x, relative.eps);
                if (has_flags.value) can &= flag_lanes(f);
                const Float key = standard_exponential(bits<Float>(load<Int>(keys + l))) /
                                  relative_weight(x, relative);
                store(keys + l, can ? bits<Int>(key) : splat<Int>(kNeverDrawn));
                drawable += can;
              });
  return total_of(drawable);
}

static int64_t race(const float* weight, const uint8_t* flags, int64_t positions,
                    const RowDraw& draw, const Weighting& weighting, int32_t* keys) {
  const Relative relative =
      relative_to(largest_drawable(weight, flags, positions, weighting.eps), weighting);
  Philox philox;
  start(draw, &philox);
  int64_t drawable = 0;
  for (int64_t first = 0; first < positions; first += kBlockPositions) {
    const int64_t count = positions - first < kBlockPositions ? positions - first : kBlockPositions;
    fill_uniforms(philox, first, count, keys + first);
    drawable +=
        to_keys(weight + first, flags ? flags + first : nullptr, count, relative, keys + first);
  }
  return drawable;
}

// Fetches what belongs to positions [first, first + count) into the second-level cache. It may be
// beyond the row: no fetch fails.
MAM_INLINE void fetch(const Ahead& ahead, int64_t first, int64_t count) {
  const char* const from = static_cast<const char*>(ahead.from) + first * ahead.bytes;
  for (int64_t byte = 0; byte < count * ahead.bytes; byte += 64)
    __builtin_prefetch(from + byte, 0, 2);
}

static int64_t uniform_race(const uint8_t* flags, int64_t positions, const RowDraw& draw,
                            const Ahead* ahead, int num_ahead, int32_t* keys) {
  Philox philox;
  start(draw, &philox);
  constexpr int64_t kFetched = 2 * kChains * kStep;
  for (int64_t first = 0; first < positions; first += kFetched) {
    for (int i = 0; i < num_ahead; ++i) fetch(ahead[i], first, kFetched);
    fill_uniforms(philox, first, positions - first < kFetched ? positions - first : kFetched,
                  keys + first);
  }
  for (int64_t l = positions; l < positions + kFloats; ++l) keys[l] = kNeverDrawn;
  if (!flags) return positions;
  int64_t drawable = 0;
  for (int64_t l = 0; l < positions; ++l) {
    keys[l] = flags[l] ? keys[l] : kNeverDrawn;
    drawable += flags[l] != 0;
  }
  return drawable;
}

static int64_t adjust(const float* importance, const int32_t* position, int64_t count,
                      float of_zero, const Weighting& weighting, int32_t* keys) {
  const float eps = weighting.eps;
  Int lost{};
  for (int64_t i = 0; i < count; i += kFloats) {
    const int64_t lanes = count - i < kFloats ? count - i : kFloats;
    Int key = splat<Int>(kNeverDrawn);
    Float weight{};
    for (int64_t j = 0; j < lanes; ++j)
      key[j] = keys[position[i + j]], weight[j] = importance[i + j];
    const Int before = key < kInfiniteKey, can = drawable_lanes(weight, eps) & before;
    Float ratio = (of_zero + eps) / (weight + eps);
    if (weighting.inverse_temperature != 1.0f) {
      const Int above = ratio > 1.0f;  // power_of takes at most 1
      Float small = above ? 1.0f / ratio : ratio;
      small = power_of(small > 0x1p-126f ? small : splat<Float>(0x1p-126f),
                       weighting.inverse_temperature);
      ratio = above ? 1.0f / small : small;
    }
    const Float raced = one_minus_exp(standard_exponential(bits<Float>(key)) * ratio);
    key = can ? bits<Int>(raced) : splat<Int>(kNeverDrawn);
    lost += before & ~can;
    for (int64_t j = 0; j < lanes; ++j) keys[position[i + j]] = key[j];
  }
  return total_of(lost);
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
