// Chebyshev nodes for a batch: where they stand, and how many are needed.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/kernels.h"
#include "cpu/workers.h"

namespace mam {
namespace cpu {

// A Grid and the memory it points to.
struct GridPlan {
  Grid grid;
  Buffer<double> node, transform;
};

// Nodes on which exp(slope x), x exp(slope x) and x^2 exp(slope x) are interpolated over [low, high] to kTruncation of their smallest
// value, for every |slope| <= steepest; nothing where that takes more than kMaxNodes.
std::optional<GridPlan> plan_grid(double low, double high, double steepest);

// The largest (high - low) for which plan_grid succeeds with this slope.
double reach_of_grid(double steepest);

}  // namespace cpu
}  // namespace mam
