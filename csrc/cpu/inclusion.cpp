// Inclusion probabilities on the CPU.

#include <vector>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

// Rows of other types and strides, made contiguous.
struct Scratch {
  Buffer<float> weight;
  Buffer<uint8_t> flags;
};

std::vector<Scratch> scratch_for(int threads, int64_t positions) {
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  for (Scratch& mine : scratch) {
    mine.weight.reset(positions);
    mine.flags.reset(positions);
  }
  return scratch;
}

}  // namespace

void inclusion_probabilities(const Values& weights, const Flags& valid, const int32_t* num_samples,
                             float* probability, double* time, const Launch& launch) {
  const int threads = threads_for(weights.rows, launch.threads);
  const int64_t positions = weights.positions;
  const std::vector<Scratch> scratch = scratch_for(threads, positions);
  parallel_for(weights.rows, threads, [&](int64_t row, int thread) {
    const Scratch& mine = scratch[static_cast<size_t>(thread)];
    time[row] = kernels().inclusion(dense_row(weights, row, mine.weight.get()),
                                    flag_row(valid, row, positions, mine.flags.get()), positions,
                                    num_samples[row], probability + row * positions);
  });
}

void inclusion_probabilities_backward(const float* grad, const Values& weights,
                                      const float* probability, const double* time,
                                      float* grad_weights, const Launch& launch) {
  const int threads = threads_for(weights.rows, launch.threads);
  const int64_t positions = weights.positions;
  const std::vector<Scratch> scratch = scratch_for(threads, positions);
  parallel_for(weights.rows, threads, [&](int64_t row, int thread) {
    const int64_t at = row * positions;
    kernels().inclusion_gradient(
        grad + at, dense_row(weights, row, scratch[static_cast<size_t>(thread)].weight.get()),
        probability + at, time[row], positions, grad_weights + at);
  });
}

}  // namespace cpu
}  // namespace mam
