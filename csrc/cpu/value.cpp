// The value path on the CPU: attention over scalar values, and the masking step. The method is derived in
// mam_kernels/value_attention/README.md: the rows are reduced to their values that are not zero, their common range gets Chebyshev nodes,
// and each row's measure on the nodes gives every moment and the importance. Rows and slopes out of reach of the nodes go directly.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/drawing.h"
#include "cpu/grid.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workers.h"
#include "mam/ops.h"

namespace mam {
namespace cpu {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr int64_t kMaxPositions = std::numeric_limits<int32_t>::max() - 1023;  // entries keep their positions in 32 bits

// What the first pass learns of a row. Entries are kept where they are few; value is null where they have to be read again.
struct Row {
  Entries entries;
  float low, high;  // of the values that exist, zeros among them
  bool finite, on_grid;

  bool empty() const { return entries.count + entries.zeros == 0; }
  bool kept() const { return entries.value != nullptr || entries.count == 0; }
};

// Memory that only grows while rows come in; addresses stay.
class Arena {
 public:
  template <typename T>
  T* copy(const T* from, int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    if (blocks_.empty() || used_ + bytes > size_) {
      size_ = std::max(bytes, kBlock);
      used_ = 0;
      blocks_.emplace_back(size_);
    }
    T* to = reinterpret_cast<T*>(blocks_.back().get() + used_);
    used_ += bytes;
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
    return to;
  }

 private:
  static constexpr int64_t kLine = 64, kBlock = int64_t{1} << 18;
  std::vector<Buffer<char>> blocks_;
  int64_t used_ = 0, size_ = 0;
};

// One thread's memory for one row.
struct Slot {
  Buffer<float> value, importance;
  Buffer<int32_t> position;
  Buffer<double> weights, inverse;
  int64_t offsets[kMaxNodes + 1];

  void reset(int64_t positions, int64_t slopes) {
    value.reset(positions + kPadding);
    importance.reset(positions + kPadding);
    position.reset(positions + kPadding);
    weights.reset(3 * kMaxNodes);
    inverse.reset(slopes + kPadding);
  }
};

constexpr int kSlots = 2;

struct Worker {
  Arena arena;
  Buffer<float> row, value;
  Buffer<int32_t> position;
  Buffer<uint8_t> valid, maskable;
  Buffer<double> chosen_inverse, log_partition;
  Slot slot[kSlots];
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
        rows_(static_cast<size_t>(values.rows)),
        workers_(static_cast<size_t>(threads_)) {
    if (values.positions > kMaxPositions) throw std::length_error("value attention on the CPU takes at most 2^31 - 2^10 positions a row");
    for (Worker& worker : workers_) reset(worker);
    if (masking_) choose_slopes();
  }

  void run() {
    parallel_for(values_.rows, threads_, [&](int64_t row, int thread) { look_at(row, workers_[static_cast<size_t>(thread)]); });
    plan();
    if (plan_) fill_exponentials();
    compute();
  }

 private:
  void reset(Worker& worker) const;
  void choose_slopes();
  void look_at(int64_t row, Worker& worker);
  Entries read(int64_t row, Worker& worker) const;
  Entries read_dense(int64_t row, Worker& worker) const;
  Entries read_sparse(int64_t row, Worker& worker) const;
  Entries entries_of(int64_t row, Worker& worker) const;
  const uint8_t* valid_row(int64_t row, Worker& worker) const { return flag_row(valid_, row, values_.positions, worker.valid.get()); }

  double steepest() const;
  void plan();
  void plan_over(double limit, double steepest);
  void fill_exponentials();
  void gather_chosen();

  void compute();
  void compute_on_grid(const int64_t* rows, int count, Worker& worker);
  void compute_alone(int64_t row, Worker& worker);
  RowMoments moments_of(int64_t row, const Slot& slot) const;
  void fill_moments(int64_t row, float log_partition, float other) const;
  void importance_on_grid(int64_t row, Slot& slot, Worker& worker);
  void finish_row(int64_t row, const Entries& entries, const float* importance, float of_zero, Worker& worker);

  const Values& values_;
  const Flags& valid_;
  const float* slope_;
  const int64_t slopes_;
  const Moments& out_;
  const Masking* masking_;
  const int threads_;
  std::vector<Row> rows_;
  std::vector<Worker> workers_;
  std::optional<GridPlan> plan_;
  Exponentials exponentials_{};
  Buffer<double> tiles_, shift_, chosen_exponentials_;
  std::vector<int64_t> chosen_;  // indices of the chosen slopes
  std::vector<float> chosen_slope_;
  int64_t chosen_padded_ = 0;
};

void ValuePass::reset(Worker& worker) const {
  const int64_t positions = values_.positions + kPadding;
  worker.row.reset(positions);
  worker.value.reset(positions);
  worker.position.reset(positions);
  worker.valid.reset(positions);
  worker.log_partition.reset(slopes_ + kPadding);
  for (Slot& slot : worker.slot) slot.reset(values_.positions, slopes_);
  if (!masking_) return;
  worker.maskable.reset(positions);
  worker.chosen_inverse.reset(masking_->num_chosen * masking_->heads + kPadding);
  worker.draw.reset(values_.positions);
}

void ValuePass::choose_slopes() {
  for (int64_t i = 0; i < masking_->num_chosen; ++i)
    for (int64_t h = 0; h < masking_->heads; ++h) chosen_.push_back(masking_->latents[i] * masking_->heads + h);
  for (const int64_t s : chosen_) chosen_slope_.push_back(slope_[s]);
  const int64_t step = 2 * kernels().tile;
  chosen_padded_ = (static_cast<int64_t>(chosen_.size()) + step - 1) / step * step;
}

// --- First pass: rows to entries ---

Entries ValuePass::read_dense(int64_t row, Worker& worker) const {
  const float* values = dense_row(values_, row, worker.row.get());
  Entries entries{worker.value.get(), worker.position.get(), 0, 0};
  entries.count =
      kernels().compact(values, valid_row(row, worker), values_.positions, worker.value.get(), worker.position.get(), &entries.zeros);
  return entries;
}

Entries ValuePass::read_sparse(int64_t row, Worker& worker) const {
  const auto index = [this](const void* from, int64_t i) {
    return values_.index64 ? static_cast<const int64_t*>(from)[i] : static_cast<const int32_t*>(from)[i];
  };
  const int64_t first = index(values_.crow, row), stored = index(values_.crow, row + 1) - first;
  const float* values = floats(values_.data, values_.dtype, first, 1, stored, worker.row.get());
  const uint8_t* valid = valid_row(row, worker);
  int64_t count = 0;
  for (int64_t i = 0; i < stored; ++i) {
    const int64_t column = index(values_.col, first + i);
    worker.value[count] = values[i];
    worker.position[count] = static_cast<int32_t>(column);
    count += values[i] != 0.0f && (!valid || valid[column]);
  }
  int64_t exists = values_.positions;
  if (valid) exists -= std::count(valid, valid + values_.positions, uint8_t{0});
  return {worker.value.get(), worker.position.get(), count, exists - count};
}

Entries ValuePass::read(int64_t row, Worker& worker) const { return values_.crow ? read_sparse(row, worker) : read_dense(row, worker); }

void ValuePass::look_at(int64_t row, Worker& worker) {
  Row& state = rows_[static_cast<size_t>(row)];
  const Entries entries = read(row, worker);
  state.entries = {nullptr, nullptr, entries.count, entries.zeros};
  state.finite = kernels().range(entries.value, entries.count, &state.low, &state.high);
  if (entries.zeros) {
    state.low = std::min(state.low, 0.0f);
    state.high = std::max(state.high, 0.0f);
  }
  // a full row would double the memory of its input
  if (4 * entries.count > values_.positions) return;
  state.entries.value = worker.arena.copy(entries.value, entries.count);
  state.entries.position = worker.arena.copy(entries.position, entries.count);
}

Entries ValuePass::entries_of(int64_t row, Worker& worker) const {
  const Row& state = rows_[static_cast<size_t>(row)];
  return state.kept() ? state.entries : read(row, worker);
}

// --- The nodes ---

double ValuePass::steepest() const {
  double largest = 0;
  for (int64_t s = 0; s < slopes_; ++s)
    if (std::isfinite(slope_[s])) largest = std::max(largest, std::fabs(static_cast<double>(slope_[s])));
  return largest;
}

// Nodes for the range of the rows whose values are within the limit.
void ValuePass::plan_over(double limit, double steepest) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (Row& row : rows_) {
    row.on_grid = !row.empty() && row.finite && row.low >= -limit && row.high <= limit;
    if (!row.on_grid) continue;
    low = std::min<double>(low, row.low);
    high = std::max<double>(high, row.high);
  }
  plan_ = low <= high ? plan_grid(low, high, steepest) : std::nullopt;
}

void ValuePass::plan() {
  const double largest = steepest();
  plan_over(std::numeric_limits<double>::infinity(), largest);
  // one row far off must not take the nodes away from the others
  if (!plan_) plan_over(0.5 * reach_of_grid(largest), largest);
  if (!plan_)
    for (Row& row : rows_) row.on_grid = false;
}

void ValuePass::fill_exponentials() {
  const int64_t tile = kernels().tile, num_tiles = (slopes_ + tile - 1) / tile;
  tiles_.reset(num_tiles * tile * plan_->grid.nodes);
  shift_.reset(num_tiles * tile);
  exponentials_ = {tiles_.get(), shift_.get(), slopes_, num_tiles};
  constexpr int64_t kTilesAtOnce = 8;
  parallel_for((num_tiles + kTilesAtOnce - 1) / kTilesAtOnce, threads_, [&](int64_t item, int) {
    const int64_t first = item * kTilesAtOnce, last = std::min(first + kTilesAtOnce, num_tiles);
    kernels().exponentials(plan_->grid, slope_, slopes_, first, last, tiles_.get(), shift_.get());
  });
  if (masking_) gather_chosen();
}

void ValuePass::gather_chosen() {
  const int64_t tile = kernels().tile, nodes = plan_->grid.nodes, count = static_cast<int64_t>(chosen_.size());
  chosen_exponentials_.reset(nodes * chosen_padded_);
  for (int64_t k = 0; k < nodes; ++k) {
    double* to = chosen_exponentials_.get() + k * chosen_padded_;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t s = chosen_[static_cast<size_t>(i)];
      to[i] = tiles_[(s / tile * nodes + k) * tile + s % tile];
    }
    std::fill(to + count, to + chosen_padded_, 0.0);
  }
  for (Worker& worker : workers_) std::fill(worker.chosen_inverse.get() + count, worker.chosen_inverse.get() + chosen_padded_, 0.0);
}

// --- Second pass: moments, importance, draw ---

void ValuePass::compute() {
  std::vector<int64_t> on_grid, alone;
  for (int64_t row = 0; row < values_.rows; ++row) (rows_[static_cast<size_t>(row)].on_grid ? on_grid : alone).push_back(row);
  // two rows share every load of the exponentials, unless that leaves threads idle
  const int64_t num_on_grid = static_cast<int64_t>(on_grid.size()), together = num_on_grid >= 2 * kSlots * threads_ ? kSlots : 1;
  const int64_t groups = (num_on_grid + together - 1) / together;
  parallel_for(groups + static_cast<int64_t>(alone.size()), threads_, [&](int64_t item, int thread) {
    Worker& worker = workers_[static_cast<size_t>(thread)];
    if (item >= groups) return compute_alone(alone[static_cast<size_t>(item - groups)], worker);
    const int64_t first = item * together;
    compute_on_grid(on_grid.data() + first, static_cast<int>(std::min(together, num_on_grid - first)), worker);
  });
}

RowMoments ValuePass::moments_of(int64_t row, const Slot& slot) const {
  const int64_t at = row * slopes_;
  return {out_.log_partition + at, out_.mean + at, out_.variance + at, slot.inverse.get()};
}

void ValuePass::compute_on_grid(const int64_t* rows, int count, Worker& worker) {
  const Grid& grid = plan_->grid;
  NodeWeights weights[kSlots];
  RowMoments out[kSlots];
  for (int i = 0; i < count; ++i) {
    Slot& slot = worker.slot[i];
    const Entries entries = entries_of(rows[i], worker);
    kernels().partition(grid, entries, slot.value.get(), slot.position.get(), slot.offsets);
    kernels().node_weights(grid, slot.value.get(), slot.offsets, entries.zeros, slot.weights.get());
    weights[i] = slot.weights.get();
    out[i] = moments_of(rows[i], slot);
  }
  kernels().moments(grid, exponentials_, count, weights, out);
  if (!masking_) return;
  for (int i = 0; i < count; ++i) importance_on_grid(rows[i], worker.slot[i], worker);
}

void ValuePass::importance_on_grid(int64_t row, Slot& slot, Worker& worker) {
  for (size_t i = 0; i < chosen_.size(); ++i) worker.chosen_inverse[static_cast<int64_t>(i)] = slot.inverse[chosen_[i]];
  float of_zero = 0;
  kernels().importance(plan_->grid, chosen_exponentials_.get(), chosen_padded_, worker.chosen_inverse.get(), slot.value.get(), slot.offsets,
                       slot.importance.get(), &of_zero);
  const Row& state = rows_[static_cast<size_t>(row)];
  finish_row(row, {slot.value.get(), slot.position.get(), state.entries.count, state.entries.zeros}, slot.importance.get(), of_zero,
             worker);
}

void ValuePass::fill_moments(int64_t row, float log_partition, float other) const {
  const int64_t at = row * slopes_;
  std::fill_n(out_.log_partition + at, slopes_, log_partition);
  std::fill_n(out_.mean + at, slopes_, other);
  std::fill_n(out_.variance + at, slopes_, other);
}

void ValuePass::compute_alone(int64_t row, Worker& worker) {
  const Row& state = rows_[static_cast<size_t>(row)];
  Slot& slot = worker.slot[0];
  const Entries entries = entries_of(row, worker);
  float of_zero = 0;
  if (state.empty()) {
    fill_moments(row, -std::numeric_limits<float>::infinity(), 0.0f);
  } else if (!state.finite) {
    fill_moments(row, kNaN, kNaN);
    of_zero = kNaN;
    std::fill_n(slot.importance.get(), entries.count, kNaN);
  } else {
    kernels().direct_moments(entries, slope_, slopes_, worker.log_partition.get(), moments_of(row, slot));
    if (masking_) {
      const int64_t count = static_cast<int64_t>(chosen_.size());
      for (int64_t i = 0; i < count; ++i) worker.chosen_inverse[i] = worker.log_partition[chosen_[static_cast<size_t>(i)]];
      kernels().direct_importance(entries, chosen_slope_.data(), worker.chosen_inverse.get(), count, slot.importance.get(), &of_zero);
      std::fill_n(worker.chosen_inverse.get() + count, chosen_padded_ - count, 0.0);
    }
  }
  if (masking_) finish_row(row, entries, slot.importance.get(), of_zero, worker);
}

// Importance and mask of a row from the importance of its entries and of its zeros.
void ValuePass::finish_row(int64_t row, const Entries& entries, const float* importance, float of_zero, Worker& worker) {
  const int64_t positions = values_.positions;
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
