// How many panels and terms the series of a row need. The derivation is in mam_kernels/value_attention/README.md.

#include "cpu/panels.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace mam {
namespace cpu {

namespace {

// beta = |slope| * (half the width of a panel). Rounding in double is amplified by up to exp(2 beta): 2e4 at this limit.
constexpr double kLargestBeta = 5.0;
constexpr double kTruncation = 1e-11;
constexpr int kMinOrder = 3;

// What `order` terms of the series cut off, relative to the sum. Two of the terms are spent on the factors x and x^2.
double cut_off(int order, double beta) {
  const int n = order - 2;
  if (beta >= n + 1) return HUGE_VAL;
  return std::exp(beta + n * std::log(beta) - std::lgamma(n + 1.0)) / (1.0 - beta / (n + 1));
}

// The largest beta for which so many terms suffice, by number of terms.
std::array<double, kMaxOrder + 1> reaches() {
  std::array<double, kMaxOrder + 1> reach{};
  for (int order = kMinOrder; order <= kMaxOrder; ++order) {
    double within = 0, beyond = kLargestBeta + 1.0;
    for (int i = 0; i < 60; ++i) {
      const double middle = 0.5 * (within + beyond);
      (cut_off(order, middle) <= kTruncation ? within : beyond) = middle;
    }
    reach[static_cast<size_t>(order)] = within;
  }
  return reach;
}

int order_for(double beta) {
  static const std::array<double, kMaxOrder + 1> reach = reaches();
  return static_cast<int>(std::lower_bound(reach.begin() + kMinOrder, reach.end() - 1, beta) - reach.begin());
}

}  // namespace

std::optional<Series> plan_series(double low, double high, double steepest) {
  const double beta = 0.5 * steepest * (high - low);
  if (!(beta <= kLargestBeta * kMaxPanels)) return std::nullopt;
  const int panels = std::max(1, static_cast<int>(std::ceil(beta / kLargestBeta)));
  const double half = 0.5 * (high - low) / panels;
  int zero_panel = -1;
  if (low <= 0 && high >= 0) zero_panel = half > 0 ? std::min(panels - 1, static_cast<int>(-low / (2.0 * half))) : 0;
  return Series{panels, order_for(beta / panels), low, half, 0.5 * (low + high), zero_panel};
}

}  // namespace cpu
}  // namespace mam
