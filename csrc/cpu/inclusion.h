// Inclusion probabilities of a row: the time at which as many positions as are drawn are expected
// to have arrived, the probability of each, and its gradient. Derivation:
// mam_kernels/ops/inclusion.
#pragma once

#include "cpu/elementary.h"
#include "cpu/fused_selection.h"
#include "cpu/kernels.h"
#include "cpu/race.h"
#include "mam/arrivals.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

constexpr float kFurthest = 87.0f;  // beyond it exp(-u) counts as 0

// exp(-u) for 0 <= u, relative error 2e-7, and exp(-u) - 1 where u is below log(2) / 2.
struct Decay {
  Float left, less_one;
  Int late;  // all ones where less_one is of no use
};

MAM_INLINE Decay decay(Float u) {
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, error 1.4e-9
  static constexpr float kTail[] = {0.5000000013f,   0.1666666668f,  0.04166646477f,
                                    0.008333310909f, 0.00139336669f, 0.000198910096f};
  u = u > kFurthest ? splat<Float>(kFurthest) : u;
  const Float shifted = u * -0x1.715476p+0f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const Float r = (-u - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  const Float less_one = r + r * r * polynomial(r, kTail);
  const Float power = bits<Float>((bits<Word>(shifted) << 23) + (127u << 23));
  return {power + power * less_one, less_one, power < 1.0f};
}

// Weights to u = relative weight times `time`; 0 where a position cannot be drawn.
template <bool Careful>
struct Scaled {
  Relative relative;
  float time;  // with the scale of the weights unless Careful

  Scaled(const Relative& scale, double at)
      : relative(scale),
        time(static_cast<float>(Careful ? at : at * static_cast<double>(scale.inverse))) {}

  template <typename HasFlags>
  MAM_ALWAYS Float operator()(const float* w, const uint8_t* f, HasFlags) const {
    const Float weight = load<Float>(w);
    Float u = (Careful ? relative_weight(weight, relative) : weight) * time;
    if (Careful) u = drawable_lanes(weight, 0.0f) ? u : Float{};
    if (HasFlags::value) u = flag_lanes(f) ? u : Float{};
    return u;
  }
};

// A position adds 1 - exp(-u) where u is small and 1, less exp(-u), where it is not; ones are
// counted. So the error of the sum is that of float32 on sum u exp(-u), however many arrived.
template <bool Careful>
static MAM_APART Arrivals arrivals(const WeightRow& row, const Scaled<Careful> scaled) {
  constexpr int64_t kSummed = 32 * kFloats;  // in float32
  Int late{};
  Double sums[kArrivalTerms + 1] = {};
  for (int64_t first = 0; first < row.positions; first += kSummed) {
    const int64_t last = row.positions - first < kSummed ? row.positions : first + kSummed;
    Float part[kArrivalTerms + 1] = {};
    for_vectors(row.weight, row.flags, first, last,
                [&](int64_t, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                  const Float u = scaled(w, f, has_flags);
                  const Decay now = decay(u);
                  late += now.late;
                  part[0] += now.late ? now.left : now.less_one;
                  Float product = u > kFurthest ? Float{} : u * now.left;
                  part[1] += product;
                  for (int j = 2; j <= kArrivalTerms; ++j) {
                    product *= u;
                    part[j] += product;
                  }
                });
    for (int j = 0; j <= kArrivalTerms; ++j) {
      float lanes[kFloats];
      store(lanes, part[j]);
      sums[j] += to_double(load<HalfFloat>(lanes)) + to_double(load<HalfFloat>(lanes + kDoubles));
    }
  }
  Arrivals found{static_cast<double>(total_of(late)), sum(sums[0]), {}};
  for (int j = 0; j < kArrivalTerms; ++j) found.term[j] = sum(sums[j + 1]);
  return found;
}

struct Math {
  static double log(double x) { return logarithm(splat<Double>(x))[0]; }
  static double exp(double x) { return exponential(splat<Double>(x))[0]; }
  static double sqrt(double x) { return __builtin_sqrt(x); }
};

// The time at which `count` of `drawable` positions are expected, 0 < count < drawable, from a
// first guess.
template <bool Careful>
static MAM_APART double solved_time(const WeightRow& row, const Relative& relative, double count,
                                    double drawable, double time) {
  constexpr int kMostPasses = 100;
  TimeSought sought{count, drawable, 0.0, kInfiniteTime};
  for (int pass = 0; pass < kMostPasses; ++pass) {
    const Arrivals now = arrivals<Careful>(row, {relative, time});
    const double missing = missing_of(now, count);
    (missing > 0.0 ? sought.low : sought.high) = time;
    double change;
    if (change_by_series(now, missing, &change)) return time * (1.0 + change);
    const double next = further_time<Math>(sought, now, missing, time);
    if (next == time) break;
    time = next;
  }
  return time;
}

// A first guess from a sample of the row.
static MAM_APART double sampled_time(const WeightRow& row, const Relative& relative, double share) {
  constexpr double kEarly = 1e-6;  // so early that a step leads to where weights alike would be
  if (row.positions <= WeightSample::kSize) return kEarly;
  WeightSample sample;
  take(row, relative, &sample);
  if (sample.drawable == 0) return kEarly;
  const double drawable = static_cast<double>(sample.drawable);
  const WeightRow sampled{sample.relative, nullptr, WeightSample::kSize};
  return solved_time<true>(sampled, {0.0f, 1.0f, 1.0f, 1.0f}, share * drawable, drawable, kEarly);
}

template <typename Value>
MAM_INLINE void fill_row(float* out, const WeightRow& row, const Value& value) {
  for_vectors(row.weight, row.flags, 0, row.positions,
              [&](int64_t l, const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
                const Float x = value(w, f, has_flags);
                if (l + kFloats <= row.positions) {
                  store(out + l, x);
                } else {
                  for (int64_t i = 0; l + i < row.positions; ++i) out[l + i] = x[i];
                }
              });
}

template <bool Careful>
static double inclusion_of(const WeightRow& row, const Relative& relative, int64_t k,
                           int64_t drawable, float* probability) {
  double time = kInfiniteTime;
  if (k < drawable) {
    const double count = static_cast<double>(k), all = static_cast<double>(drawable);
    time =
        solved_time<Careful>(row, relative, count, all, sampled_time(row, relative, count / all));
  }
  // what cannot be drawn stays at 0 times it
  const Scaled<Careful> scaled(relative, time < kInfiniteTime ? time : 1.0);
  const bool all = !(time < kInfiniteTime);
  fill_row(probability, row, [&](const float* w, const uint8_t* f, auto has_flags) MAM_ALWAYS {
    const Float u = scaled(w, f, has_flags);
    return all ? (u > 0.0f ? splat<Float>(1.0f) : Float{}) : one_minus_exp(u);
  });
  return time;
}

static double inclusion(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
                        float* probability) {
  constexpr float kSmallest = 1e-12f, kLargest = 1e12f, kWidest = 1e-20f;
  WeightRow row{weight, flags, positions};
  const Survey found = survey<false>(row, 0.0f);
  if (k <= 0 || found.drawable == 0) {
    for (int64_t l = 0; l < positions; ++l) probability[l] = 0.0f;
    return k <= 0 && found.drawable > 0 ? 0.0 : kInfiniteTime;
  }
  if (found.drawable == positions) row.flags = nullptr;
  const Relative relative = relative_to(found.largest, {0.0f, 1.0f});
  const bool ordinary = found.all_flagged && found.largest > kSmallest &&
                        found.largest < kLargest && found.smallest > kWidest * found.largest;
  const double time = ordinary ? inclusion_of<false>(row, relative, k, found.drawable, probability)
                               : inclusion_of<true>(row, relative, k, found.drawable, probability);
  return time / static_cast<double>(found.largest);
}

// u = weight * time in two factors, since the time of small weights is beyond float32.
struct Timed {
  float first, second;

  explicit Timed(double time)
      : first(static_cast<float>(__builtin_sqrt(time))),
        second(static_cast<float>(time / static_cast<double>(first))) {}
  MAM_ALWAYS Float operator()(Float x) const { return x * first * second; }
};

static void inclusion_gradient(const float* grad, const float* weight, const float* probability,
                               double time, int64_t positions, float* out) {
  if (!(time > 0.0 && time < kInfiniteTime)) {
    for (int64_t l = 0; l < positions; ++l) out[l] = 0.0f;
    return;
  }
  const Timed timed(time);
  // Both are positive; where the weight is NaN, as its u, it is for the comparison of u to tell.
  const auto drawn = [](Float w, Float p) MAM_ALWAYS { return (w < p ? w : p) > 0.0f; };
  // Three rows side by side; the last positions as copies, with probabilities of 0.
  const auto for_all = [&](const auto& body) MAM_ALWAYS {
    int64_t l = 0;
    for (; l + kFloats <= positions; l += kFloats)
      body(l, load<Float>(grad + l), load<Float>(weight + l), load<Float>(probability + l));
    if (l == positions) return;
    float rest[3][kFloats] = {};
    for (int64_t i = 0; l + i < positions; ++i)
      rest[0][i] = grad[l + i], rest[1][i] = weight[l + i], rest[2][i] = probability[l + i];
    body(l, load<Float>(rest[0]), load<Float>(rest[1]), load<Float>(rest[2]));
  };
  Double products{}, totals{};
  for_all([&](int64_t, Float g, Float w, Float p) MAM_ALWAYS {
    const Float u = timed(w);
    const auto counts = drawn(w, p) & (u < kFurthest);
    const Float slope = counts ? u * decay(u).left : Float{};
    const Float product = counts ? g * slope : Float{};
    float lanes[2][kFloats];
    store(lanes[0], product), store(lanes[1], slope);
    products +=
        to_double(load<HalfFloat>(lanes[0])) + to_double(load<HalfFloat>(lanes[0] + kDoubles));
    totals +=
        to_double(load<HalfFloat>(lanes[1])) + to_double(load<HalfFloat>(lanes[1] + kDoubles));
  });
  const double total = sum(totals);
  const float average = total > 0.0 ? static_cast<float>(sum(products) / total) : 0.0f;
  for_all([&](int64_t l, Float g, Float w, Float p) MAM_ALWAYS {
    const Float u = timed(w);
    const Float half = decay(0.5f * u).left;  // its square may be beyond float32, as the time
    const Float scaled = (half * timed.first * (g - average)) * (half * timed.second);
    const Float found = drawn(w, p) & (0.5f * u < kFurthest) ? scaled : Float{};
    if (l + kFloats <= positions) {
      store(out + l, found);
    } else {
      for (int64_t i = 0; l + i < positions; ++i) out[l + i] = found[i];
    }
  });
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
