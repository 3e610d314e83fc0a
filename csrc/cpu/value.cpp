// The value path on the CPU: attention over scalar values, and the masking step. The method is derived in
// mam_kernels/value_attention/README.md: a row is reduced to its values that are not zero, their power sums give every moment, and the
// moments the importance. Rows and slopes out of reach of the series go directly.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/drawing.h"
#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/rows.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr int64_t kMaxPositions = std::numeric_limits<int32_t>::max() - 1023;  // entries keep their positions in 32 bits

// Entries that may be written.
struct EntryBuffer {
  Buffer<float> value;
  Buffer<int32_t> position;

  void reset(int64_t count) {
    value.reset(count);
    position.reset(count);
  }
};

// One thread's memory for one row.
struct Worker {
  EntryBuffer entries, by_panel;
  Buffer<float> row, importance;
  Buffer<uint8_t> valid, maskable;
  Buffer<double> coefficients, inverse, chosen_inverse, log_partition;
  DrawScratch draw;
};

// What the masking step adds to the moments.
struct Masking {
  Flags maskable;
  const int64_t* latents;
  int64_t num_chosen, heads;
  const int32_t* num_masked;
  Draw draw;
  Weighting weighting;
  uint8_t* mask;
  float* importance;
};

class ValuePass {
 public:
  ValuePass(const Values& values, const Flags& valid, const float* slope, int64_t slopes, const Moments& out, const Masking* masking,
            int threads)
      : values_(values),
        valid_(valid),
        slope_(slope),
        slopes_(slopes),
        out_(out),
        masking_(masking),
        threads_(threads_for(values.rows, threads)),
        workers_(static_cast<size_t>(threads_)) {
    if (values.positions > kMaxPositions) throw std::length_error("value attention on the CPU takes at most 2^31 - 2^10 positions a row");
    wide_slope_ = widened(slope, slopes);
    for (int64_t s = 0; s < slopes; ++s)
      if (std::isfinite(slope[s])) steepest_ = std::max(steepest_, std::fabs(static_cast<double>(slope[s])));
    if (masking_) choose_slopes();
    for (Worker& worker : workers_) reset(worker);
  }

  void run() {
    parallel_for(values_.rows, threads_, [&](int64_t row, int thread) { compute(row, workers_[static_cast<size_t>(thread)]); });
  }

 private:
  static Buffer<double> widened(const float* slope, int64_t count);
  void choose_slopes();
  void reset(Worker& worker) const;

  Entries read(int64_t row, Worker& worker) const;
  Entries read_dense(int64_t row, Worker& worker) const;
  Entries read_sparse(int64_t row, Worker& worker) const;
  const uint8_t* valid_row(int64_t row, Worker& worker) const { return flag_row(valid_, row, values_.positions, worker.valid.get()); }

  void compute(int64_t row, Worker& worker) const;
  void compute_by_series(int64_t row, const Series& series, Entries entries, Worker& worker) const;
  void compute_directly(int64_t row, const Entries& entries, Worker& worker) const;
  RowMoments moments_of(int64_t row, const Worker& worker) const;
  void fill_moments(int64_t row, float log_partition, float other) const;
  void finish_row(int64_t row, const Entries& entries, float of_zero, Worker& worker) const;

  const Values& values_;
  const Flags& valid_;
  const float* slope_;
  const int64_t slopes_;
  const Moments& out_;
  const Masking* masking_;
  const int threads_;
  std::vector<Worker> workers_;
  double steepest_ = 0;          // of the slopes that are finite
  Buffer<double> wide_slope_;    // padded with zeros, as are the two below
  std::vector<int64_t> chosen_;  // indices of the chosen slopes
  std::vector<float> chosen_slope_;
  Buffer<double> wide_chosen_;
};

// Infinite slopes become NaN: they have no softmax.
Buffer<double> ValuePass::widened(const float* slope, int64_t count) {
  Buffer<double> wide(count + kPadding);
  for (int64_t s = 0; s < count; ++s) wide[s] = static_cast<double>(slope[s]) + static_cast<double>(slope[s]) * 0.0;
  std::fill_n(wide.get() + count, kPadding, 0.0);
  return wide;
}

void ValuePass::choose_slopes() {
  for (int64_t i = 0; i < masking_->num_chosen; ++i)
    for (int64_t h = 0; h < masking_->heads; ++h) chosen_.push_back(masking_->latents[i] * masking_->heads + h);
  for (const int64_t s : chosen_) chosen_slope_.push_back(slope_[s]);
  wide_chosen_ = widened(chosen_slope_.data(), static_cast<int64_t>(chosen_.size()));
}

void ValuePass::reset(Worker& worker) const {
  const int64_t positions = values_.positions + kPadding;
  worker.entries.reset(positions);
  worker.by_panel.reset(positions);
  worker.row.reset(positions);
  worker.importance.reset(positions);
  worker.valid.reset(positions);
  worker.coefficients.reset(kMaxPanels * kMaxOrder);
  worker.inverse.reset(slopes_ + kPadding);
  worker.log_partition.reset(slopes_ + kPadding);
  if (!masking_) return;
  worker.maskable.reset(positions);
  worker.chosen_inverse.reset(static_cast<int64_t>(chosen_.size()) + kPadding);
  worker.draw.reset(values_.positions);
}

// --- Rows to entries ---

Entries ValuePass::read_dense(int64_t row, Worker& worker) const {
  const float* values = dense_row(values_, row, worker.row.get());
  const EntryBuffer& to = worker.entries;
  Entries entries{to.value.get(), to.position.get(), 0, 0};
  entries.count = kernels().compact(values, valid_row(row, worker), values_.positions, to.value.get(), to.position.get(), &entries.zeros);
  return entries;
}

Entries ValuePass::read_sparse(int64_t row, Worker& worker) const {
  const auto index = [this](const void* from, int64_t i) {
    return values_.index64 ? static_cast<const int64_t*>(from)[i] : static_cast<const int32_t*>(from)[i];
  };
  const int64_t first = index(values_.crow, row), stored = index(values_.crow, row + 1) - first;
  const float* values = floats(values_.data, values_.dtype, first, 1, stored, worker.row.get());
  const uint8_t* valid = valid_row(row, worker);
  const EntryBuffer& to = worker.entries;
  int64_t count = 0;
  for (int64_t i = 0; i < stored; ++i) {
    const int64_t column = index(values_.col, first + i);
    to.value[count] = values[i];
    to.position[count] = static_cast<int32_t>(column);
    count += values[i] != 0.0f && (!valid || valid[column]);
  }
  int64_t exists = values_.positions;
  if (valid) exists -= std::count(valid, valid + values_.positions, uint8_t{0});
  return {to.value.get(), to.position.get(), count, exists - count};
}

Entries ValuePass::read(int64_t row, Worker& worker) const { return values_.crow ? read_sparse(row, worker) : read_dense(row, worker); }

// --- Moments and importance ---

void ValuePass::compute(int64_t row, Worker& worker) const {
  const Entries entries = read(row, worker);
  float low, high;
  const bool finite = kernels().range(entries.value, entries.count, &low, &high);
  if (entries.zeros) {
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
  }
  if (entries.count + entries.zeros == 0) {
    fill_moments(row, -std::numeric_limits<float>::infinity(), 0.0f);
    if (masking_) finish_row(row, entries, 0.0f, worker);
  } else if (!finite) {
    fill_moments(row, kNaN, kNaN);
    std::fill_n(worker.importance.get(), entries.count, kNaN);
    if (masking_) finish_row(row, entries, kNaN, worker);
  } else if (const std::optional<Series> series = plan_series(low, high, steepest_)) {
    compute_by_series(row, *series, entries, worker);
  } else {
    compute_directly(row, entries, worker);
  }
}

RowMoments ValuePass::moments_of(int64_t row, const Worker& worker) const {
  const int64_t at = row * slopes_;
  return {out_.log_partition + at, out_.mean + at, out_.variance + at, worker.inverse.get()};
}

void ValuePass::compute_by_series(int64_t row, const Series& series, Entries entries, Worker& worker) const {
  int64_t offsets[kMaxPanels + 1] = {0, entries.count};
  if (series.panels > 1) {
    const EntryBuffer& to = worker.by_panel;
    kernels().partition(series, entries, to.value.get(), to.position.get(), offsets);
    entries.value = to.value.get();
    entries.position = to.position.get();
  }
  kernels().power_sums(series, entries.value, offsets, entries.zeros, worker.coefficients.get());
  kernels().moments(series, worker.coefficients.get(), wide_slope_.get(), slopes_, moments_of(row, worker));
  if (!masking_) return;
  const int64_t count = static_cast<int64_t>(chosen_.size());
  double* const inverse = worker.chosen_inverse.get();
  for (int64_t i = 0; i < count; ++i) inverse[i] = worker.inverse[chosen_[static_cast<size_t>(i)]];
  std::fill_n(inverse + count, kPadding, 0.0);
  float of_zero = 0;
  kernels().importance(series, wide_chosen_.get(), inverse, count, entries.value, offsets, worker.importance.get(), &of_zero);
  finish_row(row, entries, of_zero, worker);
}

void ValuePass::compute_directly(int64_t row, const Entries& entries, Worker& worker) const {
  kernels().direct_moments(entries, slope_, slopes_, worker.log_partition.get(), moments_of(row, worker));
  if (!masking_) return;
  const int64_t count = static_cast<int64_t>(chosen_.size());
  double* const log_partition = worker.chosen_inverse.get();
  for (int64_t i = 0; i < count; ++i) log_partition[i] = worker.log_partition[chosen_[static_cast<size_t>(i)]];
  float of_zero = 0;
  kernels().direct_importance(entries, chosen_slope_.data(), log_partition, count, worker.importance.get(), &of_zero);
  finish_row(row, entries, of_zero, worker);
}

void ValuePass::fill_moments(int64_t row, float log_partition, float other) const {
  const int64_t at = row * slopes_;
  std::fill_n(out_.log_partition + at, slopes_, log_partition);
  std::fill_n(out_.mean + at, slopes_, other);
  std::fill_n(out_.variance + at, slopes_, other);
}

// Importance and mask of a row from the importance of its entries and of its zeros.
void ValuePass::finish_row(int64_t row, const Entries& entries, float of_zero, Worker& worker) const {
  const int64_t positions = values_.positions;
  const float* const importance = worker.importance.get();
  float* const out = masking_->importance + row * positions;
  if (const uint8_t* valid = valid_row(row, worker)) {
    for (int64_t l = 0; l < positions; ++l) out[l] = valid[l] ? of_zero : 0.0f;
  } else {
    std::fill_n(out, positions, of_zero);
  }
  for (int64_t i = 0; i < entries.count; ++i) out[entries.position[i]] = importance[i];

  const uint8_t* maskable = flag_row(masking_->maskable, row, positions, worker.maskable.get());
  const int64_t k = masking_->num_masked[row];
  uint8_t* const mask = masking_->mask + row * positions;
  const RowDraw draw = row_draw(masking_->draw, row);
  // nearly all share the zeros' weight, and the threshold is where float32 resolves the uniforms
  const bool grouped = entries.zeros > 0 && 4 * entries.count <= positions && 4 * k <= 3 * positions;
  if (grouped && draw_grouped_row(entries, importance, of_zero, maskable, positions, k, draw, masking_->weighting, worker.draw, mask))
    return;
  draw_row(out, maskable, positions, k, draw, masking_->weighting, worker.draw, mask);
}

}  // namespace

size_t value_workspace(const Values&, int64_t) { return 0; }

void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes, const Moments& out, void*,
                     const Launch& launch) {
  ValuePass(values, valid, slope, slopes, out, nullptr, launch.threads).run();
}

void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope, int64_t num_latents, int64_t heads,
                const int64_t* latents, int64_t num_chosen, const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void*, const Launch& launch) {
  const Masking masking{maskable, latents, num_chosen, heads, num_masked, draw, weighting, mask, importance};
  ValuePass(values, valid, slope, num_latents * heads, out, &masking, launch.threads).run();
}

}  // namespace cpu
}  // namespace mam
