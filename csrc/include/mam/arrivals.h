// From what a pass over a row's weights says of one time of the race to a better time: that at
// which as many positions as are drawn are expected to have arrived. Derivation:
// mam_kernels/ops/inclusion/README.md.
#pragma once

#include <limits>

#include "mam/philox.h"

namespace mam {

constexpr double kInfiniteTime = std::numeric_limits<double>::infinity();
constexpr int kArrivalTerms = 5;

// How many positions are expected to have arrived by a time: `late` ones, less `rest`. And sums of
// u^j exp(-u), j >= 1, with u = weight times time: the terms of the series of that number about the
// time.
struct Arrivals {
  double late, rest, term[kArrivalTerms];
};

// How many fewer than `count` have arrived. Where they are nearly as many, what is small is added
// to what is small.
MAM_HOST_DEVICE inline double missing_of(const Arrivals& now, double count) {
  return (count - now.late) + now.rest;
}

// The relative change of the time with which the series adds `missing`; false where it is too short
// for that.
MAM_HOST_DEVICE inline bool change_by_series(const Arrivals& now, double missing, double* change) {
  constexpr double kFurthest = 0.25, kLeftOut = 1e-8;
  const double (&s)[kArrivalTerms] = now.term;
  double x = missing / s[0];
  if (!(x < kFurthest && x > -kFurthest)) return false;
  // added = x (a - x (b - x (c - x (d - x e))))
  const double a = s[0], b = s[1] * (1.0 / 2), c = s[2] * (1.0 / 6), d = s[3] * (1.0 / 24),
               e = s[4] * (1.0 / 120);
  for (int step = 0; step < 4; ++step) {
    const double added = x * (a - x * (b - x * (c - x * (d - x * e)))),
                 slope = a - x * (2 * b - x * (3 * c - x * (4 * d - x * (5 * e))));
    x += (missing - added) / slope;
  }
  *change = x;
  if (!(x < kFurthest && x > -kFurthest)) return false;
  const double ratio = s[3] > 0.0 ? s[4] / s[3] : 0.0;
  return x * x * x * x * x * x * (1.0 / 720) * s[4] * ratio < kLeftOut * s[0];
}

// What is known of the time that is looked for.
struct TimeSought {
  double count, drawable;  // positions expected, and those there are: 0 < count < drawable
  double low, high;        // it is between
};

// Another time in between, by Newton's method: on log(arrived) against log(time), which is right
// where few of each weight have arrived, or on log(left) against the time, which is right where
// weights are alike; whichever is later. Math has log and exp of doubles, and sqrt.
template <typename Math>
MAM_HOST_DEVICE inline double further_time(const TimeSought& sought, const Arrivals& now,
                                           double missing, double time) {
  const double rate = now.term[0], arrived = now.late - now.rest;
  const double left = (sought.drawable - sought.count) + missing;
  const double power = Math::log(sought.count / arrived) * arrived / rate;
  double next = time * Math::exp(power < 60.0 ? power : 60.0);
  const double alike =
      time * (1.0 + Math::log(left / (sought.drawable - sought.count)) * left / rate);
  if (missing > 0.0 && alike > next) next = alike;
  if (next > sought.low && next < sought.high) return next;
  if (sought.high == kInfiniteTime) return 16.0 * time;
  return sought.low > 0.0 ? Math::sqrt(sought.low) * Math::sqrt(sought.high) : sought.high / 16.0;
}

}  // namespace mam
