// The value path on the CPU: attention over scalar values, and the masking step. The method is
// derived in mam_kernels/ops/value_attention/README.md: a row is reduced to its values that are not
// zero, their power sums give every moment, and the moments the importance. Rows and slopes out of
// reach of the series go directly.

#include "cpu/value.h"

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
#include "cpu/sparse.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr int64_t kMaxPositions =
    std::numeric_limits<int32_t>::max() - 1023;  // entries keep their positions in 32 bits

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
  Buffer<uint8_t> valid, maskable, nonzero, zero, zeros_mask;
  Buffer<double> coefficients, inverse, chosen_inverse, log_partition;
  DrawScratch draw;

  // What is known of the row so far.
  Entries found;
  float of_zero;  // the importance that its zeros share
  int64_t count;  // k: positions to mask
  int64_t left;   // positions that take part in the draw, once their uniforms are there
  bool drawn;
};

class ValuePass {
 public:
  ValuePass(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
            const Moments& out, const Masking* masking, int threads)
      : values_(values),
        valid_(valid),
        slope_(slope),
        slopes_(slopes),
        out_(out),
        masking_(masking),
        threads_(threads),
        workers_(static_cast<size_t>(threads_for(values.rows, threads))) {
    if (values.positions > kMaxPositions)
      throw std::length_error(
          "value attention on the CPU takes at most 2^31 - 2^10 positions a row");
    wide_slope_ = widened(slope, slopes);
    for (int64_t s = 0; s < slopes; ++s)
      if (std::isfinite(slope[s]))
        steepest_ = std::max(steepest_, std::fabs(static_cast<double>(slope[s])));
    if (masking_) choose_slopes();
    if (apart()) ones_.assign(static_cast<size_t>(values.positions + kPadding), 1.0f);
    for (Worker& worker : workers_) reset(worker);
  }

  void run() {
    // The race of a half would not know yet where the zeros are.
    if (masking_ && !apart() && values_.rows < threads_) return run_by_halves();
    parallel_for(values_.rows, static_cast<int>(workers_.size()), [&](int64_t row, int thread) {
      Worker& worker = workers_[static_cast<size_t>(thread)];
      measure(row, worker);
      if (!masking_) return;
      const bool grouped = groups(row, worker);
      if (grouped) race(row, soon(row), worker);
      write_importance(row, worker);
      if (grouped) draw_grouped(row, worker);
      if (!worker.drawn) draw_alone(row, worker);
      if (apart()) draw_zeros(row, worker);
    });
  }

 private:
  bool apart() const { return masking_ && masking_->zeros.apart(); }
  static Buffer<double> widened(const float* slope, int64_t count);
  void choose_slopes();
  void reset(Worker& worker) const;

  Entries read(int64_t row, Worker& worker) const;
  Entries read_dense(int64_t row, Worker& worker) const;
  template <typename Index>
  Entries read_sparse(int64_t row, Worker& worker) const;
  const uint8_t* valid_row(int64_t row, Worker& worker) const {
    return flag_row(valid_, row, values_.positions, worker.valid.get());
  }

  void run_by_halves();
  void measure(int64_t row, Worker& worker) const;
  void measure_by_series(int64_t row, const Series& series, Worker& worker) const;
  void measure_directly(int64_t row, Worker& worker) const;
  RowMoments moments_of(int64_t row, const Worker& worker) const;
  void fill_moments(int64_t row, float log_partition, float other) const;

  int64_t count_masked(int64_t row, Worker& worker) const;
  void write_importance(int64_t row, Worker& worker) const;
  bool groups(int64_t row, Worker& worker) const;
  std::vector<Ahead> soon(int64_t row) const;
  void race(int64_t row, const std::vector<Ahead>& ahead, Worker& worker) const;
  void draw_grouped(int64_t row, Worker& worker) const;
  void draw_alone(int64_t row, Worker& worker) const;
  void separate(int64_t row, Worker& worker) const;
  void draw_zeros(int64_t row, Worker& worker) const;
  // Of the positions that are drawn by importance.
  const uint8_t* maskable_row(int64_t row, Worker& worker) const {
    if (apart()) return worker.nonzero.get();
    return flag_row(masking_->maskable, row, values_.positions, worker.maskable.get());
  }

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
  std::vector<float> ones_;  // weights of zeros that are drawn apart
};

// Infinite slopes become NaN: they have no softmax.
Buffer<double> ValuePass::widened(const float* slope, int64_t count) {
  Buffer<double> wide(count + kPadding);
  for (int64_t s = 0; s < count; ++s)
    wide[s] = static_cast<double>(slope[s]) + static_cast<double>(slope[s]) * 0.0;
  std::fill_n(wide.get() + count, kPadding, 0.0);
  return wide;
}

void ValuePass::choose_slopes() {
  require_indices(masking_->latents, masking_->num_chosen, slopes_ / masking_->heads);
  for (int64_t i = 0; i < masking_->num_chosen; ++i)
    for (int64_t h = 0; h < masking_->heads; ++h)
      chosen_.push_back(masking_->latents[i] * masking_->heads + h);
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
  if (!apart()) return;
  for (Buffer<uint8_t>* flags : {&worker.nonzero, &worker.zero, &worker.zeros_mask})
    flags->reset(positions);
}

// --- Rows to entries ---

Entries ValuePass::read_dense(int64_t row, Worker& worker) const {
  const float* values = dense_row(values_, row, worker.row.get());
  const EntryBuffer& to = worker.entries;
  Entries entries{to.value.get(), to.position.get(), 0, 0};
  entries.count = kernels().compact(values, valid_row(row, worker), values_.positions,
                                    to.value.get(), to.position.get(), &entries.zeros);
  return entries;
}

template <typename Index>
Entries ValuePass::read_sparse(int64_t row, Worker& worker) const {
  const StoredRow stored = stored_row(values_, row);
  const Index* const columns = static_cast<const Index*>(values_.col) + stored.first;
  const float* values =
      floats(values_.data, values_.dtype, stored.first, 1, stored.count, worker.row.get());
  const uint8_t* valid = valid_row(row, worker);
  const EntryBuffer& to = worker.entries;
  int64_t count = 0;
  for (int64_t i = 0; i < stored.count; ++i) {
    const Index column = columns[i];
    to.value[count] = values[i];
    to.position[count] = static_cast<int32_t>(column);
    count += values[i] != 0.0f && (!valid || valid[column]);
  }
  int64_t exists = values_.positions;
  if (valid) exists -= std::count(valid, valid + values_.positions, uint8_t{0});
  return {to.value.get(), to.position.get(), count, exists - count};
}

Entries ValuePass::read(int64_t row, Worker& worker) const {
  if (!values_.crow) return read_dense(row, worker);
  return values_.index64 ? read_sparse<int64_t>(row, worker) : read_sparse<int32_t>(row, worker);
}

// --- Moments and importance ---

// Where there are fewer rows than threads, two work on each: one on its moments and importance, one
// on the uniforms of its draw; then one writes the importance, and one draws.
void ValuePass::run_by_halves() {
  const int64_t rows = values_.rows;
  const auto in_halves = [&](auto&& first, auto&& second) {
    parallel_for(2 * rows, threads_for(2 * rows, threads_), [&](int64_t item, int) {
      if (item < rows) return first(item, workers_[static_cast<size_t>(item)]);
      second(item - rows, workers_[static_cast<size_t>(item - rows)]);
    });
  };
  in_halves([&](int64_t row, Worker& worker) { measure(row, worker); },
            [&](int64_t row, Worker& worker) { race(row, {}, worker); });
  in_halves([&](int64_t row, Worker& worker) { write_importance(row, worker); },
            [&](int64_t row, Worker& worker) {
              if (groups(row, worker)) draw_grouped(row, worker);
            });
  for (int64_t row = 0; row < rows; ++row) {
    Worker& worker = workers_[static_cast<size_t>(row)];
    if (!worker.drawn) draw_alone(row, worker);
  }
}

void ValuePass::measure(int64_t row, Worker& worker) const {
  const Entries& entries = worker.found = read(row, worker);
  worker.of_zero = 0.0f;
  worker.drawn = false;
  if (apart()) separate(row, worker);
  float low, high;
  const bool finite = kernels().range(entries.value, entries.count, &low, &high);
  if (entries.zeros) {
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
  }
  if (entries.count + entries.zeros == 0) {
    fill_moments(row, -std::numeric_limits<float>::infinity(), 0.0f);
  } else if (!finite) {
    fill_moments(row, kNaN, kNaN);
    std::fill_n(worker.importance.get(), entries.count, kNaN);
    worker.of_zero = kNaN;
  } else if (const std::optional<Series> series = plan_series(low, high, steepest_)) {
    measure_by_series(row, *series, worker);
  } else {
    measure_directly(row, worker);
  }
}

RowMoments ValuePass::moments_of(int64_t row, const Worker& worker) const {
  const int64_t at = row * slopes_;
  return {out_.log_partition ? out_.log_partition + at : nullptr, out_.mean + at,
          out_.variance + at, worker.inverse.get()};
}

void ValuePass::measure_by_series(int64_t row, const Series& series, Worker& worker) const {
  Entries& entries = worker.found;
  int64_t offsets[kMaxPanels + 1] = {0, entries.count};
  if (series.panels > 1) {
    const EntryBuffer& to = worker.by_panel;
    kernels().partition(series, entries, to.value.get(), to.position.get(), offsets);
    entries.value = to.value.get();
    entries.position = to.position.get();
  }
  kernels().power_sums(series, entries.value, offsets, entries.zeros, worker.coefficients.get());
  kernels().moments(series, worker.coefficients.get(), wide_slope_.get(), slopes_,
                    moments_of(row, worker));
  if (!masking_) return;
  const int64_t count = static_cast<int64_t>(chosen_.size());
  double* const inverse = worker.chosen_inverse.get();
  for (int64_t i = 0; i < count; ++i) inverse[i] = worker.inverse[chosen_[static_cast<size_t>(i)]];
  std::fill_n(inverse + count, kPadding, 0.0);
  kernels().importance(series, wide_chosen_.get(), inverse, count, entries.value, offsets,
                       worker.importance.get(), &worker.of_zero);
}

void ValuePass::measure_directly(int64_t row, Worker& worker) const {
  kernels().direct_moments(worker.found, slope_, slopes_, worker.log_partition.get(),
                           moments_of(row, worker));
  if (!masking_) return;
  const int64_t count = static_cast<int64_t>(chosen_.size());
  double* const log_partition = worker.chosen_inverse.get();
  for (int64_t i = 0; i < count; ++i)
    log_partition[i] = worker.log_partition[chosen_[static_cast<size_t>(i)]];
  kernels().direct_importance(worker.found, chosen_slope_.data(), log_partition, count,
                              worker.importance.get(), &worker.of_zero);
}

void ValuePass::fill_moments(int64_t row, float log_partition, float other) const {
  const int64_t at = row * slopes_;
  if (out_.log_partition) std::fill_n(out_.log_partition + at, slopes_, log_partition);
  std::fill_n(out_.mean + at, slopes_, other);
  std::fill_n(out_.variance + at, slopes_, other);
}

// --- The draw ---

// Which of the positions that may be masked are zeros, and which are not.
void ValuePass::separate(int64_t row, Worker& worker) const {
  const int64_t positions = values_.positions;
  const uint8_t* const maskable =
      flag_row(masking_->maskable, row, positions, worker.maskable.get());
  uint8_t *const nonzero = worker.nonzero.get(), *const zero = worker.zero.get();
  std::fill_n(nonzero, positions, uint8_t{0});
  if (maskable)
    std::copy_n(maskable, positions, zero);
  else
    std::fill_n(zero, positions, uint8_t{1});
  for (int64_t i = 0; i < worker.found.count; ++i)
    std::swap(nonzero[worker.found.position[i]], zero[worker.found.position[i]]);
}

void ValuePass::draw_zeros(int64_t row, Worker& worker) const {
  const Zeros& zeros = masking_->zeros;
  const int64_t positions = values_.positions;
  const int64_t count =
      zeros.num_masked
          ? zeros.num_masked[row]
          : static_cast<int64_t>(zeros.ratio *
                                 static_cast<double>(count_true(worker.zero.get(), positions)));
  if (count <= 0) return;
  uint8_t* const drawn = worker.zeros_mask.get();
  draw_row(ones_.data(), worker.zero.get(), positions, count, row_draw(masking_->draw, row),
           {0.0f, 1.0f}, worker.draw, drawn);
  uint8_t* const mask = masking_->mask + row * positions;
  for (int64_t l = 0; l < positions; ++l) mask[l] |= drawn[l];
}

int64_t ValuePass::count_masked(int64_t row, Worker& worker) const {
  if (masking_->num_masked) return masking_->num_masked[row];
  const uint8_t* flags = maskable_row(row, worker);
  const int64_t maskable = flags ? count_true(flags, values_.positions) : values_.positions;
  return static_cast<int64_t>(masking_->mask_ratio * static_cast<double>(maskable));
}

void ValuePass::write_importance(int64_t row, Worker& worker) const {
  const int64_t positions = values_.positions;
  float* const out = masking_->importance + row * positions;
  const float of_zero = apart() ? 0.0f : worker.of_zero;
  if (const uint8_t* valid = valid_row(row, worker)) {
    for (int64_t l = 0; l < positions; ++l) out[l] = valid[l] ? of_zero : 0.0f;
  } else {
    std::fill_n(out, positions, of_zero);
  }
  const Entries& entries = worker.found;
  for (int64_t i = 0; i < entries.count; ++i) out[entries.position[i]] = worker.importance[i];
}

// How many positions to mask, and whether nearly all share the zeros' weight and the threshold is
// where float32 resolves the uniforms.
bool ValuePass::groups(int64_t row, Worker& worker) const {
  const Entries& entries = worker.found;
  const int64_t positions = values_.positions, k = worker.count = count_masked(row, worker);
  return entries.zeros > 0 && 4 * entries.count <= positions && 4 * k <= 3 * positions;
}

// Memory that is touched after the race of a row: its outputs, and the values of the row that its
// thread is likely to take next.
std::vector<Ahead> ValuePass::soon(int64_t row) const {
  const int64_t at = row * values_.positions, next = row + static_cast<int64_t>(workers_.size());
  std::vector<Ahead> ahead{{masking_->importance + at, sizeof(float)},
                           {masking_->mask + at, sizeof(uint8_t)}};
  if (!values_.crow && values_.stride_position == 1 && next < values_.rows) {
    const int64_t bytes = values_.dtype == DType::float32 ? 4 : 2;
    ahead.push_back(
        {static_cast<const char*>(values_.data) + next * values_.stride_row * bytes, bytes});
  }
  return ahead;
}

void ValuePass::race(int64_t row, const std::vector<Ahead>& ahead, Worker& worker) const {
  worker.left = race_uniforms(maskable_row(row, worker), values_.positions,
                              row_draw(masking_->draw, row), ahead, worker.draw);
}

void ValuePass::draw_grouped(int64_t row, Worker& worker) const {
  const int64_t positions = values_.positions;
  worker.drawn = draw_grouped_row(worker.found, worker.importance.get(), worker.of_zero, positions,
                                  worker.left, worker.count, masking_->weighting, worker.draw,
                                  masking_->mask + row * positions);
}

void ValuePass::draw_alone(int64_t row, Worker& worker) const {
  const int64_t at = row * values_.positions;
  draw_row(masking_->importance + at, maskable_row(row, worker), values_.positions, worker.count,
           row_draw(masking_->draw, row), masking_->weighting, worker.draw, masking_->mask + at);
}

}  // namespace

size_t value_workspace(const Values&, int64_t) { return 0; }

void attend(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
            const Moments& out, const Masking* masking, int threads) {
  ValuePass(values, valid, slope, slopes, out, masking, threads).run();
}

void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
                     const Moments& out, void*, const Launch& launch) {
  attend(values, valid, slope, slopes, out, nullptr, launch.threads);
}

void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope,
                int64_t num_latents, int64_t heads, const int64_t* latents, int64_t num_chosen,
                const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void*, const Launch& launch) {
  const Masking masking{maskable, latents, num_chosen, heads, num_masked, 0.0,
                        {},       draw,    weighting,  mask,  importance};
  attend(values, valid, slope, num_latents * heads, out, &masking, launch.threads);
}

}  // namespace cpu
}  // namespace mam
