// How many panels and terms the series of a row need. The derivation is in
// mam_kernels/ops/value_attention/README.md.

#include "cpu/panels.h"

#include <algorithm>
#include <cmath>

namespace mam {
namespace cpu {

namespace {

// beta = |slope| * (half the width of a panel). Rounding in double is amplified by up to exp(2
// beta): 2e4 at this limit.
constexpr double kLargestBeta = 5.0;
constexpr double kTruncation = 1e-11;

// Terms for which what is cut off, relative to the sum, is within the truncation: exp(beta) beta^n
// / n! / (1 - beta / (n + 1)) with two terms fewer, which the factors x and x^2 take.
int order_for(double beta) {
  double term = std::exp(beta);
  for (int n = 1; n + 2 < kMaxOrder; ++n) {
    term *= beta / n;
    if (beta < n + 1 && term <= kTruncation * (1.0 - beta / (n + 1))) return n + 2;
  }
  return kMaxOrder;
}

}  // namespace

std::optional<Series> plan_series(double low, double high, double steepest) {
  const double beta = 0.5 * steepest * (high - low);
  if (!(beta <= kLargestBeta * kMaxPanels)) return std::nullopt;
  const int panels = std::max(1, static_cast<int>(std::ceil(beta / kLargestBeta)));
  const double half = 0.5 * (high - low) / panels;
  int zero_panel = -1;
  if (low <= 0 && high >= 0)
    zero_panel = half > 0 ? std::min(panels - 1, static_cast<int>(-low / (2.0 * half))) : 0;
  return Series{panels, order_for(beta / panels), low, half, 0.5 * (low + high), zero_panel};
}

}  // namespace cpu
}  // namespace mam
