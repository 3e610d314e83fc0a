// The draw of most rows in one pass over them. The weights alone give an interval that holds the
// k-th key. Nearly every key is on a known side of it by a comparison without logarithm or
// division. Only the few keys that are left are computed, and they decide exactly as all of them
// would. Derivation and bounds: mam_kernels/ops/selection/README.md.
#pragma once

#include "cpu/elementary.h"
#include "cpu/kernels.h"
#include "cpu/order_statistics.h"
#include "cpu/race.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

// The work done once a row costs as much as a pass over so many positions; the second where weights
// differ much, which leaves more keys.
constexpr int64_t kFewestFused = 2048, kFewestSpread = 4096;

struct WeightRow {
  const float* weight;
  const uint8_t* flags;
  int64_t positions;
};

// The drawable positions of a row: how many, the extremes of their weights, and whether they are
// all that the flags leave.
struct Survey {
  int64_t drawable;
  float smallest, largest;
  bool all_flagged;
};

// Not inlined: with lanes taken one by one the compiler keeps the vector in memory, in the loop
// before them too.
static MAM_APART int32_t largest_lane(Int vector) {
  int32_t largest = vector[0];
  for (int i = 1; i < kFloats; ++i) largest = vector[i] > largest ? vector[i] : largest;
  return largest;
}

template <bool Careful>
static MAM_APART Survey survey(const WeightRow& row, float eps) {
  Int least = splat<Int>(kNeverDrawn), greatest{}, drawable{};
  for_vectors(row.weight, row.flags, 0, row.positions,
              [&](int64_t, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                const Float weight = load<Float>(w);
                Int can = splat<Int>(-1), x = bits<Int>(weight);
                if (Careful) {
                  can = drawable_lanes(weight, eps);
                  x &= 0x7FFFFFFF;  // of -0
                }
                if (has_flags.value) can &= flag_lanes(f);
                const Int lower = x < least ? x : least, higher = x > greatest ? x : greatest;
                const bool all = !Careful && !has_flags.value;
                least = all ? lower : can ? lower : least;
                greatest = all ? higher : can ? higher : greatest;
                drawable += can;
              });
  const int32_t low = ~largest_lane(~least), high = largest_lane(greatest);
  // As integers floats >= 0 have their order, those below are less, and those beyond the finite are
  // more. So without care the extremes tell whether it was needed.
  const bool ordinary = low >= (eps > 0.0f ? 0 : 1) && high < kInfiniteKey;
  if (!Careful && !ordinary) return survey<true>(row, eps);
  return {total_of(drawable), bits<Float>(splat<Int>(low))[0], bits<Float>(splat<Int>(high))[0],
          !Careful};
}

// Relative weights taken evenly from a row, 0 for those that cannot be drawn, and how many can.
struct WeightSample {
  static constexpr int64_t kSize = 512;
  float relative[kSize];
  int64_t drawable;
};

static MAM_APART void take(const WeightRow& row, const Relative& relative, WeightSample* sample) {
  constexpr int64_t kVectors = WeightSample::kSize / kFloats;
  const int64_t vectors = row.positions / kFloats;
  Int drawable{};
  for (int64_t i = 0; i < kVectors; ++i) {
    const int64_t l = vectors * i / kVectors * kFloats;
    const Float x = load<Float>(row.weight + l);
    Int can = drawable_lanes(x, relative.eps);
    if (row.flags) can &= flag_lanes(row.flags + l);
    store(sample->relative + i * kFloats, can ? relative_weight(x, relative) : Float{});
    drawable += can;
  }
  sample->drawable = total_of(drawable);
}

// Means over a sample: of the probability p = 1 - exp(-time r) that a key is below `time`, of its
// square, and of its derivative.
struct Expected {
  double share, squares, slope;
};

// In double, and not by the intrinsic of simd.h: inlined here, gcc 12 warns of its header.
MAM_INLINE double total_of(Float vector) {
  float lanes[kFloats];
  store(lanes, vector);
  return sum(to_double(load<HalfFloat>(lanes)) + to_double(load<HalfFloat>(lanes + kDoubles)));
}

static Expected expected_below(const WeightSample& sample, double time) {
  Float share{}, squares{}, slope{};
  for (int64_t i = 0; i < WeightSample::kSize; i += kFloats) {
    const Float relative = load<Float>(sample.relative + i),
                p = one_minus_exp(relative * static_cast<float>(time));
    share += p;
    squares += p * p;
    slope += relative - relative * p;
  }
  const double size = static_cast<double>(sample.drawable);
  return {total_of(share) / size, total_of(squares) / size, total_of(slope) / size};
}

// The interval [from, to) in which the k-th key of a row is likely to be.
struct Times {
  float from, to;
};

constexpr double kLastTime = 1e6;

// False where the sample does not tell.
static MAM_APART bool likely_times(const WeightSample& sample, int64_t drawable, int64_t k,
                                   Times* times) {
  constexpr double kDeviations = 3.25, kSlack = 2.0;
  constexpr int kMostSteps = 24;
  if (sample.drawable == 0) return false;
  const double all = static_cast<double>(drawable), share = (static_cast<double>(k) - 0.5) / all;
  // The expected share is concave in the time: Newton's method climbs to it from below, from where
  // equal weights would have it.
  double time =
      static_cast<double>(standard_exponential(splat<Float>(static_cast<float>(share)))[0]) /
      expected_below(sample, 0.0).slope;
  for (int step = 0; step < kMostSteps; ++step) {
    if (!(time > 0.0 && time < kLastTime)) return false;
    const Expected now = expected_below(sample, time);
    if (!(now.slope > 0.0)) return false;
    // the variance of the share of keys below `time`, given the weights, and that of its
    // expectation, of which there is a sample
    const double within = (now.share - now.squares) / all,
                 spread = now.squares - now.share * now.share;
    const double between = (spread > 0.0 ? spread : 0.0) / static_cast<double>(sample.drawable);
    const double margin = kDeviations * __builtin_sqrt(within + between) + kSlack / all,
                 missing = share - now.share;
    time += missing / now.slope;
    if (missing > 0.5 * margin || missing < -0.5 * margin) continue;
    if (share + margin >= 1.0) return false;
    const double early = time - margin / now.slope, guess = time + margin / now.slope;
    const Expected then = expected_below(sample, guess);  // less than the slope at `time` promises
    const double late = guess + (share + margin - then.share) / then.slope;
    *times = {static_cast<float>(early > 0.0 ? early : 0.0), static_cast<float>(late)};
    return late < kLastTime;
  }
  return false;
}

// A position's uniform v is compared with 1 - exp(-time r), and with some room. This part of 1 is
// more than everything that rounds comes to, in the comparison and in the key.
constexpr double kRounding = 5e-6;

// Of kFloats positions, those whose keys are below times.from for sure, and those whose keys may be
// below times.to.
struct Early {
  LaneBits surely, perhaps;

  MAM_ALWAYS Early only(LaneBits lanes) const {
    return {static_cast<LaneBits>(surely & lanes), static_cast<LaneBits>(perhaps & lanes)};
  }
};

// Where the weights of a row differ little: exp(-time r) by three terms of its series in the middle
// of the weights. Then what the random word is compared with is a polynomial in the weight.
struct NearPowers {
  static constexpr double kMostError = 0.01;

  Float from[3], to[3];

  // 2^32 (1 - exp(-time r) - sign room) for relative weights r; returns how far the series may be
  // off.
  static double series(double time, double sign, double smallest, const Relative& relative,
                       Float (&terms)[3]) {
    const double slope = time * relative.inverse,
                 low = slope * (smallest + relative.eps);  // of time r, which ends at `time`
    const double middle = (time + low) / 2, half = (time - low) / 2,
                 at_zero = slope * relative.eps - middle;
    const double error = half * half * half / 6 * exponential(splat<Double>(-low))[0];
    const double scale = 0x1p32 * exponential(splat<Double>(-middle))[0];
    const double constant = 0x1p32 * (1.0 - sign * (error + kRounding)) -
                            scale * (1.0 - at_zero + at_zero * at_zero / 2);
    terms[0] = splat<Float>(static_cast<float>(constant));
    terms[1] = splat<Float>(static_cast<float>(scale * slope * (1.0 - at_zero)));
    terms[2] = splat<Float>(static_cast<float>(-scale * slope * slope / 2));
    return error;
  }

  bool start(const Times& times, float smallest, const Relative& relative) {
    const double first = series(times.from, 1.0, smallest, relative, from),
                 second = series(times.to, -1.0, smallest, relative, to);
    return first < kMostError && second < kMostError;
  }

  MAM_ALWAYS Early operator()(Word random, Float weight) const {
    const Float v = to_float(random);
    return {less_bits(v, (from[2] * weight + from[1]) * weight + from[0]),
            less_bits(v, (to[2] * weight + to[1]) * weight + to[0])};
  }
};

// Where they differ more: exp(-from r) as a power of two, and exp(-to r) >= exp(-from r) (1 - (to -
// from) r).
struct FarPowers {
  static constexpr float kRoom = 1e-4f + static_cast<float>(kRounding);

  float exponent, exponent_at_zero, later, later_at_zero;

  FarPowers(const Times& times, const Relative& relative)
      : exponent(times.from * -0x1.715476p+0f * relative.inverse),
        exponent_at_zero(exponent * relative.eps),
        later((times.from - times.to) * relative.inverse),
        later_at_zero(later * relative.eps + 1.0f) {}

  // 2^x for -4e6 <= x <= 0, absolute error 1e-4.
  MAM_ALWAYS static Float power_of_two(Float x) {
    static constexpr float kExp2[] = {0.999924557f, 0.6931367339f, 0.2426394785f,
                                      0.05583828295f};  // 2^r on |r| <= 1 / 2, error 8.1e-5
    constexpr float kRounder = 0x1.8p23f;
    constexpr int32_t kLeast =
        0x4B400000 - 120;  // the rounder's bits for 2^-120; what is less might as well be 0
    const Float shifted = x + kRounder, r = x - (shifted - kRounder);
    const Int n = bits<Int>(shifted);
    return bits<Float>(bits<Int>(polynomial(r, kExp2)) +
                       ((n > kLeast ? n : splat<Int>(kLeast)) << 23));
  }

  MAM_ALWAYS Early operator()(Word random, Float weight) const {
    const Float rest = to_float(random) * -0x1p-32f + 1.0f;  // 1 - v
    const Float at_from = power_of_two(weight * exponent + exponent_at_zero),
                at_to = at_from * (weight * later + later_at_zero);
    return {less_bits(splat<Float>(kRoom), rest - at_from),
            less_bits(splat<Float>(-kRoom), rest - at_to)};
  }
};

// Positions whose keys may be inside the times, in order. `keys` holds their uniforms at first.
struct Candidates {
  int32_t* position;
  int32_t* keys;
  float* weight;
  int64_t count, most;
};

// Marks the positions that are surely early and lists those that are perhaps; returns how many were
// marked. Gives up beyond `most` candidates. Unless `Careful`, all that the flags leave can be
// drawn.
template <bool Careful, typename Powers>
static MAM_APART int64_t sift(const WeightRow& row, float eps, const RowDraw& draw,
                              const Powers powers, Candidates* candidates, uint8_t* mask) {
  Philox philox;
  start(draw, &philox);
  int64_t marked = 0;
  Int here = lane_numbers();
  int32_t* const begin = candidates->position;
  int32_t* end = begin;
  uint32_t random[kBlockPositions];
  uint8_t last_marks[kBlockPositions];
  for (int64_t first = 0; first < row.positions; first += kBlockPositions) {
    const bool whole = row.positions - first >= kBlockPositions;
    const int64_t last = whole ? first + kBlockPositions : row.positions;
    for_words(philox, first, last - first,
              [&](int64_t i, Word words) MAM_ALWAYS { store(random + i, words); });
    uint8_t* const marks = whole ? mask + first : last_marks;
    int64_t i = end - begin;  // the first of this block
    for_vectors(row.weight, row.flags, first, last,
                [&](int64_t l, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                  const Float x = load<Float>(w);
                  Early early = powers(load<Word>(random + (l - first)), x);
                  if (Careful) early = early.only(lane_bits(drawable_lanes(x, eps)));
                  if (has_flags.value) early = early.only(flag_bits(f));
                  marked += __builtin_popcount(early.surely);
                  store_flags(marks + (l - first), early.surely);
                  end = append(end, here, static_cast<LaneBits>(early.perhaps & ~early.surely));
                  here += kFloats;
                });
    if (!whole)
      for (int64_t l = first; l < last; ++l) mask[l] = marks[l - first];
    candidates->count = end - begin;
    if (candidates->count > candidates->most) break;
    for (; begin + i < end; ++i) {
      candidates->keys[i] = static_cast<int32_t>(random[begin[i] - first]);
      candidates->weight[i] = row.weight[begin[i]];
    }
  }
  for (int64_t i = 0; i < candidates->count; i += kFloats)
    store(candidates->keys + i, bits<Int>(uniform_of(bits<Word>(load<Int>(candidates->keys + i)))));
  return marked;
}

template <typename Powers>
static int64_t sift(const WeightRow& row, float eps, const RowDraw& draw, const Powers& powers,
                    bool careful, Candidates* candidates, uint8_t* mask) {
  return careful ? sift<true>(row, eps, draw, powers, candidates, mask)
                 : sift<false>(row, eps, draw, powers, candidates, mask);
}

static bool draw_fused(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
                       const RowDraw& draw, const Weighting& weighting, int32_t* keys,
                       int32_t* scratch, uint8_t* mask) {
  constexpr float kSmallest = 1e-12f,
                  kLargest =
                      1e12f;  // of the largest weight: the squares of its inverse are in range
  if (positions < kFewestFused || weighting.inverse_temperature != 1.0f) return false;
  WeightRow row{weight, flags, positions};
  const Survey found = survey<false>(row, weighting.eps);
  const Relative relative = relative_to(found.largest, weighting);
  const float top = found.largest + weighting.eps;
  if (k >= found.drawable || top < kSmallest || top > kLargest) return false;
  if (positions < kFewestSpread && found.smallest + weighting.eps < 0.25f * top) return false;
  if (found.drawable == positions) row.flags = nullptr;

  WeightSample sample;
  Times times;
  take(row, relative, &sample);
  if (!likely_times(sample, found.drawable, k, &times)) return false;

  // There are at most positions / 4 candidates when their keys and weights are written; what comes
  // after them takes the place of the weights.
  int32_t* const rest = scratch + positions / 2 + kPadding;
  Candidates candidates{keys, scratch, reinterpret_cast<float*>(rest), 0, positions / 4};
  NearPowers near;
  const int64_t marked =
      near.start(times, found.smallest, relative)
          ? sift(row, weighting.eps, draw, near, !found.all_flagged, &candidates, mask)
          : sift(row, weighting.eps, draw, FarPowers(times, relative), !found.all_flagged,
                 &candidates, mask);
  const int64_t count = candidates.count;
  if (count > candidates.most || k <= marked || k > marked + count) return false;
  to_keys(candidates.weight, nullptr, count, relative, candidates.keys);

  // Every key in [from, to) is among the candidates, and what was marked is below.
  Bracket bracket{bits<Int>(splat<Float>(times.from))[0], bits<Int>(splat<Float>(times.to))[0], 0,
                  0};
  int64_t below;
  bracket.inside =
      collect(candidates.keys, padded_to_vectors(count), bracket.from, bracket.to, rest, &below);
  const int64_t rank = k - 1 - marked - below;
  if (rank < 0 || rank >= bracket.inside) return false;
  const int32_t threshold = key_of_rank(rest, bracket.inside, rank, bracket, Guess::even_spread,
                                        rest + bracket.inside + kPadding);

  uint8_t* const chosen = reinterpret_cast<uint8_t*>(rest);
  mark(candidates.keys, count, threshold, k - marked, chosen);
  const int32_t* const position = candidates.position;
  for (int64_t i = 0; i < count; ++i) mask[position[i]] = chosen[i];
  return true;
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
