#include "cpu/step.h"

#include <algorithm>

#include "cpu/rows.h"
#include "cpu/value.h"
#include "cpu/workers.h"
#include "mam/philox.h"

namespace mam {
namespace cpu {

namespace {

// A step shorter than this, in nanoseconds of one thread, is not shared. In a training step torch's
// own threads hold the other cores. A helper that is woken among them, or that loses its core
// before its item is done, costs more than it saves.
constexpr double kWorthSharing = 250e3;

// Threads that have something to do: two for a row, where there are few, and some for the products
// of the parameters.
int threads_of_step(int64_t rows, const Projection& parameters, int allowed) {
  return threads_for(std::max(2 * rows, parameters.width / 64), allowed);
}

void choose_latents(const Step& step, int64_t* chosen) {
  if (step.chosen) {
    require_indices(step.chosen, step.num_chosen, step.parameters.num_latents);
    std::copy_n(step.chosen, step.num_chosen, chosen);
    return;
  }
  Draw draw = step.draw;
  draw.sample_ids = nullptr;
  draw.stream = kStreamLatents;
  draw_latents(step.parameters.num_latents, step.num_chosen, draw, chosen, {0, 1});
}

bool any(const Flags& flags, int64_t row, int64_t positions) {
  if (!flags.data) return positions > 0;
  const uint8_t* at = flags.data + row * flags.stride_row;
  for (int64_t l = 0; l < positions; ++l)
    if (at[l * flags.stride_position]) return true;
  return false;
}

// flags (rows, positions) = valid and not masked.
void leave(const Flags& valid, const uint8_t* mask, int64_t rows, int64_t positions, int threads,
           uint8_t* left) {
  parallel_for(rows, threads_for(rows, threads), [&](int64_t row, int) {
    const int64_t at = row * positions;
    if (!valid.data) {
      for (int64_t l = 0; l < positions; ++l) left[at + l] = !mask[at + l];
      return;
    }
    const uint8_t* const from = valid.data + row * valid.stride_row;
    for (int64_t l = 0; l < positions; ++l)
      left[at + l] = from[l * valid.stride_position] && !mask[at + l];
  });
}

// The context of what the mask leaves: the mask by the slopes that decide alone, then the moments
// of the rest.
void mask_first(const Step& step, const float* slope, Masking masking, const Moments& out,
                const Buffer<uint8_t>& left, int threads) {
  const int64_t heads = step.parameters.heads, rows = step.values.rows,
                positions = step.values.positions;
  const int64_t slopes = step.num_chosen * heads;
  Buffer<float> deciding(slopes), mean(rows * slopes), variance(rows * slopes);
  Buffer<int64_t> every(step.num_chosen);
  for (int64_t i = 0; i < step.num_chosen; ++i) {
    every[i] = i;
    std::copy_n(slope + masking.latents[i] * heads, heads, deciding.get() + i * heads);
  }
  masking.latents = every.get();
  attend(step.values, step.valid, deciding.get(), slopes, {nullptr, mean.get(), variance.get()},
         &masking, threads);
  leave(step.valid, masking.mask, rows, positions, threads, left.get());
  attend(step.values, {left.get(), positions, 1}, slope, step.parameters.num_latents * heads, out,
         nullptr, threads);
}

}  // namespace

State::State(float* memory, int64_t rows, int64_t latents, int64_t heads, int64_t width)
    : mean(memory),
      variance(mean + rows * latents * heads),
      occupied(variance + rows * latents * heads),
      average(occupied + rows),
      directions(average + rows * heads),
      constant(directions + heads * width),
      folded(constant + width),
      unit(folded + heads * width),
      second(unit + 3 * width),
      gram(second + heads * heads) {}

// 1 ns for a position, 3 for the moments of a slope, 1 for a weight of the projections.
int threads_worth_step(const Values& values, const Projection& of, int allowed) {
  const double rows = static_cast<double>(values.rows), width = static_cast<double>(of.width),
               positions = static_cast<double>(values.positions),
               slopes = static_cast<double>(of.num_latents * of.heads);
  return rows * (positions + 3 * slopes) + width * width < kWorthSharing ? 1 : allowed;
}

int threads_worth_backward(int64_t rows, const Projection& of, int allowed) {
  const double width = static_cast<double>(of.width),
               products = static_cast<double>(rows * of.num_latents * of.heads * of.heads);
  return products / 3 + 2 * width * width < kWorthSharing ? 1 : allowed;
}

void masking_step(const Step& step, const StepOutput& out, int threads) {
  const Projection& parameters = step.parameters;
  const Values& values = step.values;
  const int64_t rows = values.rows, positions = values.positions,
                slopes = parameters.num_latents * parameters.heads;
  threads = threads_of_step(rows, parameters, threads);
  const Session session(threads);

  const State state(out.state, rows, parameters.num_latents, parameters.heads, parameters.width);
  Buffer<float> slope(slopes);
  project(parameters, {slope.get(), state.directions, state.constant, state.folded, state.unit},
          threads);

  Buffer<int64_t> chosen(step.num_chosen);
  choose_latents(step, chosen.get());
  const Masking masking{step.maskable,   chosen.get(),    step.num_chosen, parameters.heads,
                        step.num_masked, step.mask_ratio, step.zeros,      step.draw,
                        step.weighting,  out.mask,        out.importance};
  const Moments moments{nullptr, state.mean, state.variance};
  Flags attended = step.valid;
  Buffer<uint8_t> left(step.visible ? rows * positions : 0);
  if (step.visible) {
    mask_first(step, slope.get(), masking, moments, left, threads);
    attended = {left.get(), positions, 1};
  } else {
    attend(values, step.valid, slope.get(), slopes, moments, &masking, threads);
  }
  for (int64_t row = 0; row < rows; ++row) state.occupied[row] = any(attended, row, positions);

  context({state.mean, state.variance, state.occupied, state.directions, state.constant,
           step.out_bias, rows, parameters.num_latents, parameters.heads, parameters.width},
          {out.context, out.penalty, state.average, state.second, state.gram}, threads);
}

void masking_step_backward(const Projection& parameters, const float* out_bias, int64_t rows,
                           float* state, const StepGradient& incoming,
                           const ProjectionGradient& outgoing, float* grad_out_bias, int threads) {
  const int64_t latents = parameters.num_latents, heads = parameters.heads,
                width = parameters.width;
  threads = threads_of_step(rows, parameters, threads);
  const Session session(threads);
  const State saved(state, rows, latents, heads, width);
  Buffer<float> none(incoming.context ? 0 : rows * width);
  if (!incoming.context) std::fill_n(none.get(), rows * width, 0.0f);
  Buffer<float> slope(latents * heads), directions(heads * width), constant(width);
  context_backward({saved.mean, saved.variance, saved.occupied, saved.directions, saved.constant,
                    out_bias, rows, latents, heads, width},
                   saved.average, saved.second, saved.gram,
                   incoming.context ? incoming.context : none.get(),
                   incoming.penalty ? *incoming.penalty : 0.0f,
                   {slope.get(), directions.get(), constant.get(), grad_out_bias}, threads);
  project_backward(parameters, saved.folded, saved.unit,
                   {slope.get(), directions.get(), constant.get()}, outgoing, threads);
}

}  // namespace cpu
}  // namespace mam
