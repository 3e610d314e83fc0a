// How many panels and terms the series of a row need.
#pragma once

#include <optional>

#include "cpu/kernels.h"

namespace mam {
namespace cpu {

// Series of exp(slope x), and of its products with x and x^2, over the values in [low, high] for
// every |slope| <= steepest, such that what is cut off is below 1e-11 of any sum of them; nothing
// where that takes more than kMaxPanels.
std::optional<Series> plan_series(double low, double high, double steepest);

}  // namespace cpu
}  // namespace mam
