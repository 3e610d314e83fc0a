// Exponentials and logarithms of whole vectors. Polynomials: interpolation at Chebyshev nodes,
// errors beside them.
#pragma once

#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

template <typename Vector, typename T, int N>
MAM_INLINE Vector polynomial(Vector x, const T (&coefficient)[N]) {
  Vector value = splat<Vector>(coefficient[N - 1]);
  for (int i = N - 2; i >= 0; --i) value = value * x + coefficient[i];
  return value;
}

// An infinite slope has no softmax.
MAM_INLINE double or_nan(float slope) {
  return static_cast<double>(slope) + static_cast<double>(slope) * 0.0;
}

constexpr double kLog2High = 0x1.62e42fee00000p-1, kLog2Low = 0x1.a39ef35793c76p-33,
                 kLog2E = 0x1.71547652b82fep+0;

// exp(x), relative error 2e-16; 0 below -708, for which 2^n would be denormal. NaN stays NaN.
MAM_INLINE Double exponential(Double x) {
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, relative error 1.1e-16
  static constexpr double kTail[] = {0.5,
                                     0.166666666666666675,
                                     0.0416666666666240636,
                                     0.00833333333333005689,
                                     0.00138888889172457876,
                                     0.000198412698630782798,
                                     0.0000248015212461314944,
                                     2.75572684216826123e-6,
                                     2.76201121395723645e-7,
                                     2.51004037165766914e-8};
  constexpr double kRounder = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const Long tiny = x < -708.0;
  x = x < -708.0 ? splat<Double>(-708.0) : x;
  x = x > 709.0 ? splat<Double>(709.0) : x;
  const Double shifted = x * kLog2E + kRounder, n = shifted - kRounder;
  const Double r = (x - n * kLog2High) - n * kLog2Low;
  const Double value = (r * r) * polynomial(r, kTail) + r + 1.0;
  const Double power = bits<Double>((bits<LongWord>(shifted) << 52) + (uint64_t{1023} << 52));
  return tiny ? Double{} : value * power;
}

// log(x) for positive normal x, relative error below 1e-15 away from 1. Other x give no meaningful
// result but NaN gives NaN.
MAM_INLINE Double logarithm(Double x) {
  // (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 <= 0.0295, error 3e-16
  static constexpr double kTail[] = {
      0.666666666666666969, 0.399999999998992963, 0.285714286260699146, 0.222222111193829931,
      0.18182890247978326,  0.153316842879307582, 0.146169108072624681};
  constexpr uint64_t kHalfRoot = 0x3FE6A09E667F3BCD;  // sqrt(1/2)
  const Long exponent = bits<Long>(bits<LongWord>(x) - kHalfRoot) >> 52;
  const Double mantissa = bits<Double>(bits<LongWord>(x) - (bits<LongWord>(exponent) << 52));
  const Double s = (mantissa - 1.0) / (mantissa + 1.0), z = s * s;
  // int64 to double by way of the mantissa: AVX2 has no instruction for it
  const Double n = bits<Double>(exponent + 0x4338000000000000) - 0x1.8p52;
  const Double value = n * 0x1.62e42fefa39efp-1 + (2.0 * s + s * z * polynomial(z, kTail));
  return x != x ? x : value;
}

// log(1 + f) / f^3 less its first two terms, on [sqrt(1/2) - 1, sqrt(2) - 1], error 3e-8
constexpr float kLogTail[] = {0.3333333117f,  -0.2499999693f, 0.2000071721f,
                              -0.1666780713f, 0.1424900724f,  -0.1242552336f,
                              0.1168578472f,  -0.1148121206f, 0.06972518634f};
constexpr float kLog2Float = 0x1.62e43p-1f;

// Pairs of terms first, which makes the chain of dependent products half as long as Horner's.
MAM_INLINE Float log1p_small(Float f) {
  const Float square = f * f, fourth = square * square;
  const Float low = (kLogTail[3] * f + kLogTail[2]) * square + (kLogTail[1] * f + kLogTail[0]);
  const Float high = (kLogTail[7] * f + kLogTail[6]) * square + (kLogTail[5] * f + kLogTail[4]);
  const Float tail = (kLogTail[8] * fourth + high) * fourth + low;
  return f + (square * f * tail - 0.5f * square);
}

// x = mantissa 2^exponent with mantissa in [sqrt(1/2), sqrt(2)); x positive and normal.
MAM_INLINE Int split(Float x, Float* mantissa) {
  constexpr uint32_t kHalfRoot = 0x3F3504F3;
  const Int exponent = bits<Int>(bits<Word>(x) - kHalfRoot) >> 23;
  *mantissa = bits<Float>(bits<Word>(x) - (bits<Word>(exponent) << 23));
  return exponent;
}

// -log(1 - v) for v in (0, 1 - 2^-24]: the standard exponential variable of a uniform. Relative
// error 2e-7, also for small v.
MAM_INLINE Float standard_exponential(Float v) {
  const Float rest = 1.0f - v;
  Float mantissa;
  const Int exponent = split(rest, &mantissa);
  const Float f =
      exponent == 0 ? -v : mantissa - 1.0f;  // where nothing was halved, 1 - v has lost digits of v
  return -(__builtin_convertvector(exponent, Float) * kLog2Float + log1p_small(f));
}

// x ** power for x in [1e-38, 1], power > 0; relative error about 1e-7 (1 + power). The result may
// underflow to 0.
MAM_INLINE Float power_of(Float x, float power) {
  // (2^r - 1) / r on |r| <= 0.505, error 2e-10
  static constexpr float kExp2[] = {0.6931471806f,   0.2402265094f,   0.05550410885f,
                                    0.009618053734f, 0.001333350012f, 0.0001546261076f,
                                    1.529822127e-5f};
  const float power_high = [&] {  // the first 12 bits, whose product with an exponent is exact
    uint32_t word;
    __builtin_memcpy(&word, &power, 4);
    word &= 0xFFFFF000u;
    float high;
    __builtin_memcpy(&high, &word, 4);
    return high;
  }();
  Float mantissa;
  const Float scale = __builtin_convertvector(split(x, &mantissa), Float);
  const Float whole = scale * power_high;
  const Float part =
      scale * (power - power_high) + log1p_small(mantissa - 1.0f) * (power * 0x1.715476p+0f);
  Float total = whole + part;
  total = total < -200.0f ? splat<Float>(-200.0f) : total;
  const Int n =
      __builtin_convertvector(total - 0.5f, Int);  // towards 0, and total <= 0: the nearest integer
  const Float r = (whole - __builtin_convertvector(n, Float)) + part;
  const Float value = r * polynomial(r, kExp2) + 1.0f;
  return n < -125 ? Float{} : bits<Float>(bits<Word>(value) + (bits<Word>(n) << 23));
}

// exp(x) for x <= 88, relative error 2e-7; 0 below -87, where float32 is near its smallest normal
// number. NaN stays NaN.
MAM_INLINE Float exponential(Float x) {
  // of e^r on |r| <= log(2) / 2, relative error 3e-9
  static constexpr float kTerms[] = {
      1.0f, 1.0f, 0.4999999337f, 0.1666651952f, 0.04166840109f, 0.008368851085f, 0.001381432036f};
  constexpr float kRounder =
      0x1.8p23f +
      127.0f;  // adding it leaves the nearest integer and the exponent's bias in the low bits
  const Float shifted = x * 0x1.715476p+0f + kRounder, n = shifted - kRounder;
  const Float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  return x < -87.0f ? Float{} : polynomial(r, kTerms) * bits<Float>(bits<Word>(shifted) << 23);
}

// 1 - exp(-y) for y >= 0, relative error 2e-7.
MAM_INLINE Float one_minus_exp(Float y) {
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, error 1.4e-9
  static constexpr float kTail[] = {0.5000000013f,   0.1666666668f,  0.04166646477f,
                                    0.008333310909f, 0.00139336669f, 0.000198910096f};
  y = y > 80.0f ? splat<Float>(80.0f) : y;
  const Float shifted = y * -0x1.715476p+0f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const Float r = (-y - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  const Float less_one = r + r * r * polynomial(r, kTail);
  const Float power = bits<Float>((bits<Word>(shifted) << 23) + (127u << 23));
  return (1.0f - power) - power * less_one;
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
