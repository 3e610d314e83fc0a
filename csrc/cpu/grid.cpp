// How many Chebyshev nodes are needed. The derivation is in mam_kernels/value_attention/README.md.

#include "cpu/grid.h"

#include <algorithm>
#include <cmath>

namespace mam {
namespace cpu {

namespace {

// beta = |slope| * (half the width of a panel). Rounding in double is amplified by up to exp(2 beta): 2e4 at this limit.
constexpr double kLargestBeta = 5.0;
constexpr double kTruncation = 1e-11;
constexpr double kPi = 3.14159265358979323846;

// The modified Bessel function I_n(x) is at most (x / 2)^n / n! exp(x^2 / (4 n + 4)).
double bessel_bound(int n, double x) { return std::exp(n * std::log(0.5 * x) - std::lgamma(n + 1.0) + x * x / (4.0 * n + 4.0)); }

// Interpolation of exp(beta t) at r nodes errs by at most about 4 I_r(beta); the two moments beside it cost two degrees.
int order_for(double beta) {
  for (int order = 4; order < kMaxOrder; ++order)
    if (beta <= 0 || 4.0 * bessel_bound(order - 2, beta) * std::exp(beta) <= kTruncation) return order;
  return kMaxOrder;
}

int panels_for(double beta) { return std::max(1, static_cast<int>(std::ceil(beta / kLargestBeta))); }

constexpr int kMaxPanels = 16;

}  // namespace

double reach_of_grid(double steepest) { return steepest > 0 ? 2.0 * kLargestBeta * kMaxPanels / steepest : HUGE_VAL; }

std::optional<GridPlan> plan_grid(double low, double high, double steepest) {
  const double centre = 0.5 * (low + high);
  // one value alone has no width: any small one will do
  const double magnitude = std::max({std::fabs(low), std::fabs(high), 1e-30});
  const double total = std::max(high - low, 1e-6 * magnitude), beta = 0.5 * steepest * total;
  if (!(beta <= kLargestBeta * kMaxPanels)) return std::nullopt;
  const int panels = panels_for(beta), order = order_for(beta / panels), nodes = panels * order;
  if (nodes > kMaxNodes) return std::nullopt;
  GridPlan plan{{}, Buffer<double>(nodes), Buffer<double>(order * order)};
  const double width = total / panels, start = centre - 0.5 * total;
  for (int p = 0; p < panels; ++p)
    for (int k = 0; k < order; ++k) plan.node[p * order + k] = start + width * (p + 0.5 + 0.5 * std::cos((k + 0.5) * kPi / order));
  for (int j = 0; j < order; ++j)
    for (int k = 0; k < order; ++k) plan.transform[j * order + k] = (j == 0 ? 1.0 : 2.0) / order * std::cos(j * (k + 0.5) * kPi / order);
  const int zero_panel = low <= 0 && high >= 0 ? std::min(panels - 1, static_cast<int>(-start / width)) : -1;
  plan.grid = {panels, order, nodes, start, width, centre, plan.node.get(), plan.transform.get(), zero_panel};
  return plan;
}

}  // namespace cpu
}  // namespace mam
