// Runs the CPU kernels over odd shapes, against plain double arithmetic, in buffers of exactly the
// size they need. Built with the address and undefined-behaviour sanitizers by test_sanitizers.py.
// Exit status 0: every check held. The instruction set is printed first.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/collapse.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/step.h"
#include "mam/keys.h"
#include "mam/ops.h"
#include "mam/philox.h"

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
std::mt19937_64 generator(7);

double random_uniform() { return std::uniform_real_distribution<double>(0.0, 1.0)(generator); }

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// Exactly `size` elements on the heap, so that one step beyond them is caught.
template <typename T>
using Exact = std::unique_ptr<T[]>;

template <typename T>
Exact<T> exactly(int64_t size) {
  return Exact<T>(new T[static_cast<size_t>(std::max<int64_t>(size, 1))]);
}

enum class Layout { contiguous, strided, transposed, csr32, csr64 };

struct Problem {
  int64_t rows, positions, latents, heads;
  Layout layout;
  bool flags, poison;
  double density, steepness;
  std::string name;
};

// A problem's data in the given layout, and the same as plain rows.
struct Data {
  std::vector<float> plain;  // (rows, positions)
  std::vector<uint8_t> valid, maskable;
  Exact<float> values;
  Exact<int32_t> crow32, col32;
  Exact<int64_t> crow64, col64;
  Exact<uint8_t> valid_exact, maskable_exact;
  Exact<float> slope;
  mam::Values view;
  mam::Flags valid_view{nullptr, 0, 0}, maskable_view{nullptr, 0, 0};
};

void fill_plain(const Problem& problem, Data* data) {
  const int64_t size = problem.rows * problem.positions;
  data->plain.assign(static_cast<size_t>(size), 0.0f);
  data->valid.assign(static_cast<size_t>(size), 1);
  data->maskable.assign(static_cast<size_t>(size), 1);
  for (int64_t i = 0; i < size; ++i) {
    const bool empty_row = problem.flags && problem.rows > 1 && i / problem.positions == 1;
    if (problem.flags) data->valid[i] = !empty_row && random_uniform() < 0.7;
    if (problem.flags) data->maskable[i] = data->valid[i] && random_uniform() < 0.6;
    if (random_uniform() < problem.density)
      data->plain[i] = static_cast<float>(-std::log(1.0 - random_uniform()) + 0.1);
    if (!data->valid[i]) data->plain[i] = kNaN;
  }
  if (problem.poison)
    data->plain[0] = data->valid[0] ? std::numeric_limits<float>::infinity() : kNaN;
}

void fill_dense(const Problem& problem, Data* data) {
  const int64_t rows = problem.rows, positions = problem.positions,
                step = problem.layout == Layout::strided ? 3 : 1;
  const bool transposed = problem.layout == Layout::transposed;
  const int64_t stride_row = transposed ? 1 : positions * step,
                stride_position = transposed ? rows : step;
  data->values = exactly<float>((rows - 1) * stride_row + (positions - 1) * stride_position + 1);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t l = 0; l < positions; ++l)
      data->values[b * stride_row + l * stride_position] = data->plain[b * positions + l];
  data->view = {data->values.get(),
                mam::DType::float32,
                rows,
                positions,
                stride_row,
                stride_position,
                nullptr,
                nullptr,
                false};
}

void fill_sparse(const Problem& problem, Data* data) {
  const int64_t rows = problem.rows, positions = problem.positions;
  std::vector<float> stored;
  std::vector<int64_t> crow{0}, col;
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t l = positions - 1; l >= 0; --l) {  // descending: columns need not be sorted
      const float x = data->plain[b * positions + l];
      if (x != 0.0f || l % 5 == 0) stored.push_back(x), col.push_back(l);  // some zeros are stored
    }
    crow.push_back(static_cast<int64_t>(col.size()));
  }
  const int64_t size = static_cast<int64_t>(stored.size());
  data->values = exactly<float>(size);
  std::copy(stored.begin(), stored.end(), data->values.get());
  const bool index64 = problem.layout == Layout::csr64;
  data->crow64 = exactly<int64_t>(rows + 1), data->col64 = exactly<int64_t>(size);
  data->crow32 = exactly<int32_t>(rows + 1), data->col32 = exactly<int32_t>(size);
  for (size_t i = 0; i < crow.size(); ++i)
    data->crow64[i] = crow[i], data->crow32[i] = static_cast<int32_t>(crow[i]);
  for (size_t i = 0; i < col.size(); ++i)
    data->col64[i] = col[i], data->col32[i] = static_cast<int32_t>(col[i]);
  const void* offsets = index64 ? static_cast<const void*>(data->crow64.get()) : data->crow32.get();
  const void* columns = index64 ? static_cast<const void*>(data->col64.get()) : data->col32.get();
  data->view = {data->values.get(),
                mam::DType::float32,
                rows,
                positions,
                0,
                0,
                offsets,
                columns,
                index64,
                size};
}

void fill_flags(const Problem& problem, Data* data) {
  if (!problem.flags) return;
  const int64_t rows = problem.rows, positions = problem.positions;
  const bool transposed = problem.layout == Layout::transposed;
  const int64_t stride_row = transposed ? 1 : positions, stride_position = transposed ? rows : 1;
  data->valid_exact = exactly<uint8_t>(rows * positions),
  data->maskable_exact = exactly<uint8_t>(rows * positions);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t l = 0; l < positions; ++l) {
      // true is every byte but 0
      const uint8_t odd = static_cast<uint8_t>(1 + (b + 7 * l) % 255);
      const int64_t at = b * positions + l, to = b * stride_row + l * stride_position;
      data->valid_exact[to] = data->valid[at] ? odd : 0;
      data->maskable_exact[to] = data->maskable[at] ? odd : 0;
    }
  data->valid_view = {data->valid_exact.get(), stride_row, stride_position};
  data->maskable_view = {data->maskable_exact.get(), stride_row, stride_position};
}

Data make(const Problem& problem) {
  Data data;
  fill_plain(problem, &data);
  if (problem.layout == Layout::csr32 || problem.layout == Layout::csr64) {
    fill_sparse(problem, &data);
  } else {
    fill_dense(problem, &data);
  }
  fill_flags(problem, &data);
  const int64_t slopes = problem.latents * problem.heads;
  data.slope = exactly<float>(slopes);
  for (int64_t s = 0; s < slopes; ++s)
    data.slope[s] = static_cast<float>((2 * random_uniform() - 1) * problem.steepness);
  return data;
}

bool close(float got, double wanted, double margin) {
  if (std::isnan(wanted)) return std::isnan(got);
  if (std::isinf(wanted)) return got == wanted;
  return std::fabs(got - wanted) <= margin * (1.0 + std::fabs(wanted));
}

// log M, mean and variance of one row in double, two passes.
void check_moments(const Problem& problem, const Data& data, int64_t row, int64_t s,
                   float log_partition, float mean, float variance) {
  const double alpha = data.slope[s];
  double largest = -kInf, m = 0, m1 = 0, m2 = 0;
  const auto each = [&](const auto& body) {
    for (int64_t l = 0; l < problem.positions; ++l)
      if (data.valid[row * problem.positions + l])
        body(static_cast<double>(data.plain[row * problem.positions + l]));
  };
  bool finite = true;
  each([&](double x) { largest = std::max(largest, alpha * x), finite &= std::isfinite(x); });
  if (!finite)
    return expect(std::isnan(log_partition) && std::isnan(mean) && std::isnan(variance),
                  problem.name + ": poisoned row");
  each([&](double x) {
    m += std::exp(alpha * x - largest), m1 += std::exp(alpha * x - largest) * x;
  });
  each([&](double x) { m2 += std::exp(alpha * x - largest) * (x - m1 / m) * (x - m1 / m); });
  const bool empty = m == 0;
  expect(close(log_partition, empty ? -kInf : largest + std::log(m), 1e-6),
         problem.name + ": log-partition");
  expect(close(mean, empty ? 0 : m1 / m, 1e-6), problem.name + ": mean");
  expect(close(variance, empty ? 0 : m2 / m, 2e-6), problem.name + ": variance");
}

// Of one row: the number drawn, only where allowed, and every drawn key before every other.
void check_draw(const std::string& name, const float* weight, const uint8_t* allowed,
                int64_t positions, int64_t k, uint64_t seed, uint32_t id,
                const mam::Weighting& weighting, const uint8_t* mask) {
  std::vector<double> key(static_cast<size_t>(positions), kInf);
  double largest = 0, last_drawn = 0, first_left = kInf;
  int64_t drawable = 0, drawn = 0;
  const auto can = [&](int64_t l) { return allowed[l] && mam::drawable(weight[l], weighting.eps); };
  for (int64_t l = 0; l < positions; ++l)
    if (can(l)) largest = std::max(largest, static_cast<double>(weight[l])), ++drawable;
  for (int64_t l = 0; l < positions; ++l) {
    expect(mask[l] <= 1 && (can(l) || !mask[l]), name + ": drew what cannot be drawn");
    drawn += mask[l];
    if (!can(l)) continue;
    const double ratio =
        (static_cast<double>(weight[l]) + weighting.eps) / (largest + weighting.eps);
    const uint32_t bits = mam::philox(seed, static_cast<uint32_t>(l >> 2), id, 3, 0).word[l & 3];
    const double relative =
        std::max(std::pow(ratio, static_cast<double>(weighting.inverse_temperature)), 1e-37);
    key[static_cast<size_t>(l)] = -std::log1p(-static_cast<double>(mam::uniform(bits))) / relative;
    if (mask[l]) last_drawn = std::max(last_drawn, key[static_cast<size_t>(l)]);
    if (!mask[l]) first_left = std::min(first_left, key[static_cast<size_t>(l)]);
  }
  expect(drawn == std::min(std::max<int64_t>(k, 0), drawable), name + ": number drawn");
  expect(last_drawn <= first_left * (1 + 4e-6), name + ": order of the keys");
}

void check_value_mask(const Problem& problem, const mam::Weighting& weighting, int threads) {
  Data data = make(problem);
  const int64_t rows = problem.rows, positions = problem.positions,
                slopes = problem.latents * problem.heads;
  auto log_partition = exactly<float>(rows * slopes), mean = exactly<float>(rows * slopes),
       variance = exactly<float>(rows * slopes);
  auto importance = exactly<float>(rows * positions);
  auto mask = exactly<uint8_t>(rows * positions);
  auto num_masked = exactly<int32_t>(rows);
  for (int64_t b = 0; b < rows; ++b)
    num_masked[b] = static_cast<int32_t>(b % 4 == 3 ? positions + 5 : b % 4 * positions / 4);
  auto latents = exactly<int64_t>(2);
  latents[0] = 0, latents[1] = problem.latents - 1;
  const int64_t num_chosen = problem.latents > 1 ? 2 : 1;
  const uint64_t seed = 0x123456789abcdefull;
  const mam::Draw draw{seed, 3, nullptr, nullptr, nullptr, 0};
  mam::cpu::value_mask(data.view, data.valid_view, data.maskable_view, data.slope.get(),
                       problem.latents, problem.heads, latents.get(), num_chosen, num_masked.get(),
                       draw, weighting, mask.get(), importance.get(),
                       {log_partition.get(), mean.get(), variance.get()}, nullptr, {0, threads});
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t s = 0; s < slopes; ++s)
      check_moments(problem, data, b, s, log_partition[b * slopes + s], mean[b * slopes + s],
                    variance[b * slopes + s]);
    for (int64_t l = 0; l < positions; ++l) {
      double wanted = 0;
      for (int64_t i = 0; i < num_chosen; ++i)
        for (int64_t h = 0; h < problem.heads; ++h) {
          const int64_t s = latents[i] * problem.heads + h;
          wanted += std::exp(static_cast<double>(data.slope[s]) * data.plain[b * positions + l] -
                             log_partition[b * slopes + s]);
        }
      if (!data.valid[b * positions + l]) {
        expect(importance[b * positions + l] == 0, problem.name + ": importance of padding");
        continue;
      }
      // the log-partition above is rounded to float32
      const double margin = 1e-6 * (2 + std::fabs(log_partition[b * slopes]) + problem.steepness);
      if (std::isfinite(wanted))
        expect(close(importance[b * positions + l], wanted, margin), problem.name + ": importance");
    }
    check_draw(problem.name, importance.get() + b * positions, data.maskable.data() + b * positions,
               positions, num_masked[b], seed, static_cast<uint32_t>(b), weighting,
               mask.get() + b * positions);
  }
}

void check_select(int64_t rows, int64_t positions, int kind, bool flags,
                  const mam::Weighting& weighting) {
  const std::string name = "select " + std::to_string(rows) + " x " + std::to_string(positions) +
                           ", weights " + std::to_string(kind);
  auto weight = exactly<float>(rows * positions);
  auto valid = exactly<uint8_t>(rows * positions), mask = exactly<uint8_t>(rows * positions);
  auto count = exactly<int32_t>(rows);
  for (int64_t i = 0; i < rows * positions; ++i) {
    const double u = random_uniform();
    const double choices[] = {
        u,         1.0,      std::exp(30 * (u - 0.5)),          u < 0.9 ? 0.0 : 1.0,
        u * 1e-40, u * 3e38, u < 0.1 ? -1.0 : u < 0.2 ? NAN : u};
    weight[i] = static_cast<float>(choices[kind]);
    valid[i] = !flags || random_uniform() < 0.5;
  }
  for (int64_t b = 0; b < rows; ++b)
    count[b] = static_cast<int32_t>(b == 0   ? positions / 3
                                    : b == 1 ? 0
                                    : b == 2 ? 1
                                             : positions + 1);
  const uint64_t seed = ~0ull;
  const mam::Draw draw{seed, 3, nullptr, nullptr, nullptr, 0};
  const mam::Values view{
      weight.get(), mam::DType::float32, rows, positions, positions, 1, nullptr, nullptr, false};
  const mam::Flags flag_view{flags ? valid.get() : nullptr, positions, 1};
  mam::cpu::select(view, flag_view, count.get(), draw, weighting, mask.get(), nullptr, {0, 2});
  for (int64_t b = 0; b < rows; ++b)
    check_draw(name, weight.get() + b * positions, valid.get() + b * positions, positions, count[b],
               seed, static_cast<uint32_t>(b), weighting, mask.get() + b * positions);
}

// The draw in one pass gives the bits of the general one, or says that it does not.
struct FusedRow {
  std::string name;
  double least_drawn, most_drawn;                  // share of rows for which the one pass is enough
  std::function<double(int64_t, int64_t)> weight;  // of a position, of so many
};

// Whether a position is among the vectors that are looked at to tell where the k-th key lies.
bool sampled(int64_t position, int64_t positions) {
  for (const int64_t lanes : {4, 8, 16})
    for (int64_t i = 0, taken = 512 / lanes; i < taken; ++i) {
      const int64_t first = positions / lanes * i / taken * lanes;
      if (position >= first && position < first + lanes) return true;
    }
  return false;
}

void check_fused_row(const FusedRow& kind, int64_t positions, int64_t k, bool flags, float eps,
                     uint32_t step, int64_t* drawn) {
  const std::string name =
      kind.name + ", " + std::to_string(k) + " of " + std::to_string(positions);
  auto weight = exactly<float>(positions);
  auto valid = exactly<uint8_t>(positions), mask = exactly<uint8_t>(positions),
       wanted = exactly<uint8_t>(positions);
  auto keys = exactly<int32_t>(positions + mam::cpu::kPadding),
       scratch = exactly<int32_t>(2 * (positions + mam::cpu::kPadding));
  for (int64_t l = 0; l < positions; ++l) {
    weight[l] = static_cast<float>(kind.weight(l, positions));
    valid[l] = random_uniform() < 0.9;
  }
  const mam::cpu::Kernels& kernels = mam::cpu::kernels();
  const mam::cpu::RowDraw draw{7, 1, step, 0};
  const mam::Weighting weighting{eps, 1.0f};
  const uint8_t* const given = flags ? valid.get() : nullptr;
  const int64_t drawable =
      kernels.race(weight.get(), given, positions, draw, weighting, keys.get());
  k = std::min(k, drawable - 1);
  if (k < 1) return;
  const int32_t threshold = kernels.threshold(keys.get(), positions, drawable, k, scratch.get());
  kernels.mark(keys.get(), positions, threshold, k, wanted.get());
  std::fill_n(keys.get(), positions, -1);
  if (!kernels.draw_fused(weight.get(), given, positions, k, draw, weighting, keys.get(),
                          scratch.get(), mask.get()))
    return;
  ++*drawn;
  expect(std::equal(mask.get(), mask.get() + positions, wanted.get()), "draw in one pass, " + name);
}

void check_fused() {
  const auto normal = [] { return std::normal_distribution<double>()(generator); };
  const std::vector<FusedRow> kinds = {
      {"near-uniform", 0.97, 1, [](int64_t, int64_t) { return 1 + 0.05 * random_uniform(); }},
      {"uniform", 0.45, 1, [](int64_t, int64_t) { return random_uniform(); }},
      {"equal", 0.97, 1, [](int64_t, int64_t) { return 3.0; }},
      {"log-normal", 0.45, 1, [=](int64_t, int64_t) { return std::exp(normal()); }},
      {"wide", 0, 0.5, [](int64_t, int64_t) { return std::exp(60 * (random_uniform() - 0.5)); }},
      {"two values", 0.3, 1, [](int64_t, int64_t) { return random_uniform() < 0.5 ? 1.0 : 1e-3; }},
      {"in order", 0.9, 1,
       [](int64_t l, int64_t positions) {
         return 1.0 + static_cast<double>(l) / static_cast<double>(positions);
       }},
      {"one large", 0.01, 1, [](int64_t l, int64_t) { return l == 1000 ? 1e4 : random_uniform(); }},
      {"some not drawable", 0.4, 1,
       [](int64_t l, int64_t) {
         const double odd[] = {NAN, kInf, -kInf, -1.0, 0.0, -0.0, -1e-9, 1e-42};
         return random_uniform() < 0.1 ? odd[l % 8] : 1 + random_uniform();
       }},
      {"misleading", 0, 0.3,
       [](int64_t l, int64_t positions) { return sampled(l, positions) ? 1.0 : 1e-3; }},
      {"too small", 0, 0, [](int64_t, int64_t) { return 1e-13 * random_uniform(); }},
      {"too large", 0, 0, [](int64_t, int64_t) { return 1e13 * (1 + random_uniform()); }},
  };
  for (const FusedRow& kind : kinds) {
    int64_t drawn = 0, rows = 0;
    for (const int64_t positions : {2048, 2063, 3072, 4096, 4111, 6145})
      for (const double share : {0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.8})
        for (const bool flags : {false, true})
          for (const float eps : {0.0f, 1e-15f, 0.3f}) {
            const bool small =
                kind.name == "too small";  // only where eps does not lift the weights
            check_fused_row(kind, positions,
                            1 + static_cast<int64_t>(share * static_cast<double>(positions)), flags,
                            small ? 0.0f : eps, static_cast<uint32_t>(rows), &drawn);
            ++rows;
          }
    const double part = static_cast<double>(drawn) / static_cast<double>(rows);
    expect(part >= kind.least_drawn && part <= kind.most_drawn,
           kind.name + ": drawn in one pass " + std::to_string(part));
  }
  int64_t drawn = 0;
  check_fused_row(kinds[0], 2047, 600, false, 0.0f, 0, &drawn);
  expect(drawn == 0, "short rows take the general way");
}

// Closed form of attention over scalar tokens: each function against one line of double arithmetic
// for each output, and its gradients against differences of that along a random direction.
using Doubles = std::vector<double>;

struct Sizes {
  int64_t latents, heads, head, rows;
  int64_t width() const { return heads * head; }
};

// latents, in_weight, in_bias, token_weight, token_bias, out_weight -> slope, directions, constant
Doubles plain_projections(const Sizes& size, const std::vector<Doubles>& p) {
  const int64_t width = size.width(), head = size.head;
  const auto product = [&](int64_t row, const Doubles& x) {  // of a row of in_weight
    double total = 0;
    for (int64_t c = 0; c < width; ++c) total += p[1][row * width + c] * x[c];
    return total;
  };
  Doubles out;
  for (int64_t n = 0; n < size.latents; ++n)
    for (int64_t h = 0; h < size.heads; ++h) {
      double slope = 0;
      for (int64_t i = h * head; i < (h + 1) * head; ++i) {
        double query = p[2][i];
        for (int64_t c = 0; c < width; ++c) query += p[1][i * width + c] * p[0][n * width + c];
        slope += query * product(width + i, p[3]);
      }
      out.push_back(slope / std::sqrt(static_cast<double>(head)));
    }
  for (int64_t h = 0; h < size.heads; ++h)
    for (int64_t c = 0; c < width; ++c) {
      double direction = 0;
      for (int64_t i = h * head; i < (h + 1) * head; ++i)
        direction += p[5][c * width + i] * product(2 * width + i, p[3]);
      out.push_back(direction);
    }
  for (int64_t c = 0; c < width; ++c) {
    double constant = 0;
    for (int64_t i = 0; i < width; ++i)
      constant += p[5][c * width + i] * (product(2 * width + i, p[4]) + p[2][2 * width + i]);
    out.push_back(constant);
  }
  return out;
}

// mean, directions, constant, out_bias -> context, penalty; every second cell is without tokens
Doubles plain_context(const Sizes& size, const std::vector<Doubles>& p) {
  const int64_t width = size.width();
  Doubles out(static_cast<size_t>(size.rows * width), 0.0);
  double penalty = 0;
  for (int64_t b = 0; b < size.rows; ++b)
    for (int64_t n = 0; n < size.latents; ++n)
      for (int64_t c = 0; c < width; ++c) {
        double attended = p[3][c] + (b % 2 ? 0.0 : p[2][c]);
        for (int64_t h = 0; h < size.heads; ++h)
          attended += p[0][(b * size.latents + n) * size.heads + h] * p[1][h * width + c];
        out[b * width + c] += attended / static_cast<double>(size.latents);
        penalty += attended * attended;
      }
  out.push_back(penalty / static_cast<double>(std::max<int64_t>(size.rows, 1)));
  return out;
}

Exact<float> some(int64_t count, double scale) {
  auto out = exactly<float>(count);
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<float>((2 * random_uniform() - 1) * scale);
  return out;
}

Doubles as_doubles(const Exact<float>& from, int64_t count) {
  return Doubles(from.get(), from.get() + count);
}

void expect_alike(const Doubles& wanted, size_t from, const Exact<float>& got, int64_t count,
                  const std::string& what) {
  for (int64_t i = 0; i < count; ++i)
    expect(close(got[i], wanted[from + static_cast<size_t>(i)], 1e-4), what);
}

// The sum of the outputs, weighted, at inputs moved by `by` along a direction.
template <typename Function>
double moved(const Function& function, std::vector<Doubles> inputs,
             const std::vector<Doubles>& direction, const Doubles& weight, double by) {
  for (size_t i = 0; i < inputs.size(); ++i)
    for (size_t j = 0; j < inputs[i].size(); ++j) inputs[i][j] += by * direction[i][j];
  const Doubles out = function(inputs);
  double total = 0;
  for (size_t j = 0; j < out.size(); ++j) total += weight[j] * out[j];
  return total;
}

template <typename Function>
void expect_gradient(const Function& function, const std::vector<Doubles>& inputs,
                     const std::vector<Doubles>& gradient, const Doubles& weight,
                     const std::string& what) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<Doubles> direction;
    double along = 0, scale = 1e-3;
    for (size_t j = 0; j < inputs.size(); ++j) {
      direction.emplace_back(inputs[j].size(), 0.0);
      if (j != i) continue;
      for (size_t k = 0; k < inputs[j].size(); ++k) {
        direction[j][k] = 2 * random_uniform() - 1;
        along += direction[j][k] * gradient[j][k];
        scale += std::fabs(direction[j][k] * gradient[j][k]);
      }
    }
    const double step = 1e-4, wanted = (moved(function, inputs, direction, weight, step) -
                                        moved(function, inputs, direction, weight, -step)) /
                                       (2 * step);
    expect(std::fabs(along - wanted) <= 1e-4 * scale, what + std::to_string(i));
  }
}

void check_projections(const Sizes& size, const std::string& name) {
  const int64_t width = size.width(), heads = size.heads, slopes = size.latents * heads;
  const int64_t counts[] = {size.latents * width, 3 * width * width, 3 * width, width, width,
                            width * width};
  std::vector<Exact<float>> p, g;
  std::vector<Doubles> plain, gradient;
  for (const int64_t count : counts) {
    p.push_back(some(count, 1.0));
    plain.push_back(as_doubles(p.back(), count));
    g.push_back(exactly<float>(count));
  }
  auto slope = exactly<float>(slopes), directions = exactly<float>(heads * width),
       constant = exactly<float>(width);
  auto folded = exactly<float>(heads * width), unit = exactly<float>(3 * width);
  const mam::cpu::Projection from{p[0].get(), p[1].get(),   p[2].get(), p[3].get(), p[4].get(),
                                  p[5].get(), size.latents, heads,      width};
  mam::cpu::project(from, {slope.get(), directions.get(), constant.get(), folded.get(), unit.get()},
                    2);
  const auto function = [&](const std::vector<Doubles>& inputs) {
    return plain_projections(size, inputs);
  };
  const Doubles wanted = function(plain);
  expect_alike(wanted, 0, slope, slopes, name + ": slope");
  expect_alike(wanted, static_cast<size_t>(slopes), directions, heads * width,
               name + ": directions");
  expect_alike(wanted, static_cast<size_t>(slopes + heads * width), constant, width,
               name + ": constant");

  const auto into_slope = some(slopes, 1.0), into_directions = some(heads * width, 1.0),
             into_constant = some(width, 1.0);
  mam::cpu::project_backward(
      from, folded.get(), unit.get(),
      {into_slope.get(), into_directions.get(), into_constant.get()},
      {g[0].get(), g[1].get(), g[2].get(), g[3].get(), g[4].get(), g[5].get()}, 2);
  Doubles weight = as_doubles(into_slope, slopes);
  for (const double x : as_doubles(into_directions, heads * width)) weight.push_back(x);
  for (const double x : as_doubles(into_constant, width)) weight.push_back(x);
  for (size_t i = 0; i < g.size(); ++i) gradient.push_back(as_doubles(g[i], counts[i]));
  expect_gradient(function, plain, gradient, weight, name + ": gradient of parameter ");
}

void check_context(const Sizes& size, const std::string& name) {
  const int64_t width = size.width(), heads = size.heads, slopes = size.latents * heads,
                rows = size.rows;
  auto mean = some(rows * slopes, 1.0), variance = some(rows * slopes, 1.0),
       occupied = exactly<float>(rows);
  const auto directions = some(heads * width, 1.0), constant = some(width, 1.0),
             bias = some(width, 1.0);
  for (int64_t b = 0; b < rows; ++b) occupied[b] = b % 2 ? 0.0f : 1.0f;
  auto context = exactly<float>(rows * width), penalty = exactly<float>(1),
       average = exactly<float>(rows * heads);
  auto second = exactly<float>(heads * heads), gram = exactly<float>(heads * heads);
  const mam::cpu::ContextInput from{
      mean.get(),     variance.get(), occupied.get(), directions.get(),
      constant.get(), bias.get(),     rows,           size.latents,
      heads,          width};
  mam::cpu::context(from, {context.get(), penalty.get(), average.get(), second.get(), gram.get()},
                    2);
  const auto function = [&](const std::vector<Doubles>& inputs) {
    return plain_context(size, inputs);
  };
  const std::vector<Doubles> plain = {as_doubles(mean, rows * slopes),
                                      as_doubles(directions, heads * width),
                                      as_doubles(constant, width), as_doubles(bias, width)};
  const Doubles wanted = function(plain);
  expect_alike(wanted, 0, context, rows * width, name + ": context");
  expect_alike(wanted, static_cast<size_t>(rows * width), penalty, 1, name + ": penalty");

  const auto incoming = some(rows * width, 1.0);
  auto slope = exactly<float>(slopes), into_directions = exactly<float>(heads * width),
       into_constant = exactly<float>(width), into_bias = exactly<float>(width);
  mam::cpu::context_backward(
      from, average.get(), second.get(), gram.get(), incoming.get(), 0.3f,
      {slope.get(), into_directions.get(), into_constant.get(), into_bias.get()}, 2);
  Doubles weight = as_doubles(incoming, rows * width);
  weight.push_back(0.3f);
  // a slope moves the means of all cells, each by its variance
  const auto of_slopes = [&](const std::vector<Doubles>& inputs) {
    std::vector<Doubles> with_means = {plain[0], inputs[1], inputs[2], inputs[3]};
    for (int64_t i = 0; i < rows * slopes; ++i)
      with_means[0][i] += inputs[0][i % slopes] * variance[i];
    return plain_context(size, with_means);
  };
  expect_gradient(of_slopes,
                  {Doubles(static_cast<size_t>(slopes), 0.0), plain[1], plain[2], plain[3]},
                  {as_doubles(slope, slopes), as_doubles(into_directions, heads * width),
                   as_doubles(into_constant, width), as_doubles(into_bias, width)},
                  weight, name + ": gradient of input ");
}

template <typename T>
void expect_same(const T* one, const T* other, int64_t count, const std::string& what) {
  for (int64_t i = 0; i < count; ++i)
    expect(one[i] == other[i] || (one[i] != one[i] && other[i] != other[i]), what);
}

// The whole step in one call against its parts, one after the other: the same bits.
void check_step(const Problem& problem, bool visible, bool drawn, int threads) {
  const int64_t rows = problem.rows, positions = problem.positions, latents = problem.latents,
                heads = problem.heads, head = 3;
  const int64_t width = heads * head, slopes = latents * heads, num_chosen = (latents + 1) / 2;
  const std::string name = problem.name + (visible ? ", visible" : "") + (drawn ? ", drawn" : "");
  Data data = make(problem);
  const int64_t counts[] = {latents * width, 3 * width * width, 3 * width, width,
                            width,           width * width};
  std::vector<Exact<float>> p, g, h;
  for (const int64_t count : counts)
    p.push_back(some(count, 0.5)), g.push_back(exactly<float>(count)),
        h.push_back(exactly<float>(count));
  const auto out_bias = some(width, 1.0);
  const mam::cpu::Projection parameters{p[0].get(), p[1].get(), p[2].get(), p[3].get(), p[4].get(),
                                        p[5].get(), latents,    heads,      width};
  const mam::Draw draw{99, 3, nullptr, nullptr, nullptr, mam::kStreamPositions};
  const mam::Weighting weighting{1e-8f, 1.0f};

  // the parts
  auto latent = exactly<int64_t>(num_chosen);
  if (drawn) {
    mam::cpu::draw_latents(latents, num_chosen,
                           {99, 3, nullptr, nullptr, nullptr, mam::kStreamLatents}, latent.get(),
                           {0, 1});
  } else {
    for (int64_t i = 0; i < num_chosen; ++i) latent[i] = latents - 1 - i;
  }
  auto num_masked = exactly<int32_t>(rows);
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t maskable = std::count(data.maskable.begin() + b * positions,
                                        data.maskable.begin() + (b + 1) * positions, 1);
    num_masked[b] = static_cast<int32_t>(0.4 * static_cast<double>(maskable));
  }
  auto slope = exactly<float>(slopes), directions = exactly<float>(heads * width),
       constant = exactly<float>(width);
  auto folded = exactly<float>(heads * width), unit = exactly<float>(3 * width);
  mam::cpu::project(parameters,
                    {slope.get(), directions.get(), constant.get(), folded.get(), unit.get()}, 1);
  auto log_partition = exactly<float>(rows * slopes), mean = exactly<float>(rows * slopes),
       variance = exactly<float>(rows * slopes);
  auto importance = exactly<float>(rows * positions), occupied = exactly<float>(rows);
  auto mask = exactly<uint8_t>(rows * positions), left = exactly<uint8_t>(rows * positions);
  const mam::Moments moments{log_partition.get(), mean.get(), variance.get()};
  mam::cpu::value_mask(data.view, data.valid_view, data.maskable_view, slope.get(), latents, heads,
                       latent.get(), num_chosen, num_masked.get(), draw, weighting, mask.get(),
                       importance.get(), moments, nullptr, {0, 1});
  for (int64_t i = 0; i < rows * positions; ++i) left[i] = data.valid[i] && !(visible && mask[i]);
  if (visible)
    mam::cpu::value_attention(data.view, {left.get(), positions, 1}, slope.get(), slopes, moments,
                              nullptr, {0, 1});
  for (int64_t b = 0; b < rows; ++b)
    occupied[b] = std::count(left.get() + b * positions, left.get() + (b + 1) * positions, 1) > 0;
  auto context = exactly<float>(rows * width), penalty = exactly<float>(1),
       average = exactly<float>(rows * heads);
  auto second = exactly<float>(heads * heads), gram = exactly<float>(heads * heads);
  const mam::cpu::ContextInput from{
      mean.get(),     variance.get(), occupied.get(), directions.get(),
      constant.get(), out_bias.get(), rows,           latents,
      heads,          width};
  mam::cpu::context(from, {context.get(), penalty.get(), average.get(), second.get(), gram.get()},
                    1);

  // the step
  auto mask_of_step = exactly<uint8_t>(rows * positions);
  auto importance_of_step = exactly<float>(rows * positions),
       context_of_step = exactly<float>(rows * width);
  auto penalty_of_step = exactly<float>(1),
       state = exactly<float>(mam::cpu::State::size(rows, latents, heads, width));
  const mam::cpu::Step step{parameters,
                            out_bias.get(),
                            data.view,
                            data.valid_view,
                            data.maskable_view,
                            drawn ? nullptr : latent.get(),
                            num_chosen,
                            drawn ? nullptr : num_masked.get(),
                            0.4,
                            draw,
                            weighting,
                            visible};
  mam::cpu::masking_step(step,
                         {mask_of_step.get(), importance_of_step.get(), context_of_step.get(),
                          penalty_of_step.get(), state.get()},
                         threads);
  expect_same(mask_of_step.get(), mask.get(), rows * positions, name + ": mask");
  expect_same(importance_of_step.get(), importance.get(), rows * positions, name + ": importance");
  expect_same(context_of_step.get(), context.get(), rows * width, name + ": context");
  expect_same(penalty_of_step.get(), penalty.get(), 1, name + ": penalty");
  expect_same(state.get(), mean.get(), rows * slopes, name + ": mean");

  // their gradients
  const auto incoming = some(rows * width, 1.0), of_penalty = some(1, 1.0);
  auto d_slope = exactly<float>(slopes), d_directions = exactly<float>(heads * width),
       d_constant = exactly<float>(width), d_bias = exactly<float>(width),
       d_bias_of_step = exactly<float>(width);
  mam::cpu::context_backward(
      from, average.get(), second.get(), gram.get(), incoming.get(), of_penalty[0],
      {d_slope.get(), d_directions.get(), d_constant.get(), d_bias.get()}, 1);
  mam::cpu::project_backward(
      parameters, folded.get(), unit.get(), {d_slope.get(), d_directions.get(), d_constant.get()},
      {g[0].get(), g[1].get(), g[2].get(), g[3].get(), g[4].get(), g[5].get()}, 1);
  mam::cpu::masking_step_backward(
      parameters, out_bias.get(), rows, state.get(), {incoming.get(), of_penalty.get()},
      {h[0].get(), h[1].get(), h[2].get(), h[3].get(), h[4].get(), h[5].get()},
      d_bias_of_step.get(), threads);
  for (size_t i = 0; i < g.size(); ++i)
    expect_same(h[i].get(), g[i].get(), counts[i], name + ": gradient of parameter");
  expect_same(d_bias_of_step.get(), d_bias.get(), width, name + ": gradient of the bias");
}

// A step with zeros drawn apart, against one among the other values and a draw among the zeros.
void check_zeros_apart(const Problem& problem, bool visible, bool counted) {
  const int64_t rows = problem.rows, positions = problem.positions, heads = problem.heads,
                width = 2 * heads, size = rows * positions;
  const std::string name = problem.name + (visible ? ", visible" : "") + ", zeros apart";
  Data data = make(problem);
  std::vector<Exact<float>> p;
  for (const int64_t count :
       {problem.latents * width, 3 * width * width, 3 * width, width, width, width * width, width})
    p.push_back(some(count, 0.5));
  const mam::cpu::Projection parameters{p[0].get(),      p[1].get(), p[2].get(),
                                        p[3].get(),      p[4].get(), p[5].get(),
                                        problem.latents, heads,      width};
  const mam::Draw draw{99, 3, nullptr, nullptr, nullptr, mam::kStreamPositions};
  auto nonzero = exactly<uint8_t>(size), zero = exactly<uint8_t>(size);
  auto num_masked = exactly<int32_t>(rows), num_zeros = exactly<int32_t>(rows);
  for (int64_t b = 0; b < rows; ++b) {
    int64_t counts[2] = {0, 0};
    for (int64_t i = b * positions; i < (b + 1) * positions; ++i) {
      const bool is_zero = data.plain[i] == 0.0f;
      nonzero[i] = data.maskable[i] && !is_zero, zero[i] = data.maskable[i] && is_zero;
      counts[0] += nonzero[i], counts[1] += zero[i];
    }
    num_masked[b] = static_cast<int32_t>(0.4 * static_cast<double>(counts[0]));
    num_zeros[b] = static_cast<int32_t>(0.2 * static_cast<double>(counts[1]));
  }
  struct Result {
    Exact<uint8_t> mask;
    Exact<float> importance, context, penalty, state;
  };
  const auto run = [&](const mam::Flags& maskable, const mam::cpu::Zeros& zeros) {
    Result out{exactly<uint8_t>(size), exactly<float>(size), exactly<float>(rows * width),
               exactly<float>(1),
               exactly<float>(mam::cpu::State::size(rows, problem.latents, heads, width))};
    mam::cpu::masking_step({parameters,
                            p[6].get(),
                            data.view,
                            data.valid_view,
                            maskable,
                            nullptr,
                            2,
                            counted ? num_masked.get() : nullptr,
                            0.4,
                            draw,
                            {1e-8f, 1.0f},
                            visible,
                            zeros},
                           {out.mask.get(), out.importance.get(), out.context.get(),
                            out.penalty.get(), out.state.get()},
                           2);
    return out;
  };
  const Result others = run({nonzero.get(), positions, 1}, {});
  const Result apart = run(data.maskable_view, counted ? mam::cpu::Zeros{num_zeros.get(), -1.0}
                                                       : mam::cpu::Zeros{nullptr, 0.2});
  auto drawn = exactly<uint8_t>(size);
  auto ones = exactly<float>(size);
  std::fill_n(ones.get(), size, 1.0f);
  mam::cpu::select(
      {ones.get(), mam::DType::float32, rows, positions, positions, 1, nullptr, nullptr, false},
      {zero.get(), positions, 1}, num_zeros.get(), draw, {0.0f, 1.0f}, drawn.get(), nullptr,
      {0, 1});
  for (int64_t i = 0; i < size; ++i) {
    expect(apart.mask[i] == (others.mask[i] | drawn[i]), name + ": mask");
    const float expected = data.plain[i] == 0.0f || !data.valid[i] ? 0.0f : others.importance[i];
    expect_same(&apart.importance[i], &expected, 1, name + ": importance");
  }
  if (!visible) {
    expect_same(apart.context.get(), others.context.get(), rows * width, name + ": context");
    expect_same(apart.penalty.get(), others.penalty.get(), 1, name + ": penalty");
  }
}

void check_steps() {
  const Layout layouts[] = {Layout::contiguous, Layout::transposed, Layout::csr32};
  for (const Layout layout : layouts)
    for (const bool flags : {false, true})
      for (const bool visible : {false, true})
        for (const int64_t rows : {1, 5})
          check_step({rows, 700, 5, 3, layout, flags, false, 0.1, 1.0,
                      "step, layout " + std::to_string(static_cast<int>(layout))},
                     visible, rows == 5, 1 + static_cast<int>(rows));
  for (const Layout layout : layouts)
    for (const bool flags : {false, true})
      for (const bool visible : {false, true})
        check_zeros_apart({3, 700, 5, 3, layout, flags, layout == Layout::csr32, 0.3, 1.0,
                           "step, layout " + std::to_string(static_cast<int>(layout))},
                          visible, flags);
  check_step({3, 0, 2, 1, Layout::csr64, false, false, 0.1, 1.0, "step, no positions"}, false, true,
             2);
}

// Indices of a CSR matrix that are not sound: an error that says what is wrong, and no step outside
// of the arrays.
struct Unsound {
  std::vector<int64_t> crow, col;
  int64_t positions;
  std::string wrong;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

template <typename Index>
Exact<Index> copied(const std::vector<int64_t>& from) {
  auto to = exactly<Index>(static_cast<int64_t>(from.size()));
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<Index>(from[i]);
  return to;
}

template <typename Index>
void check_unsound(const Unsound& matrix, int threads) {
  const int64_t rows = static_cast<int64_t>(matrix.crow.size()) - 1, positions = matrix.positions,
                stored = static_cast<int64_t>(matrix.col.size()), latents = 2, heads = 2, head = 3,
                width = heads * head, slopes = latents * heads;
  const auto values = some(stored, 1.0), slope = some(slopes, 1.0);
  const auto crow = copied<Index>(matrix.crow), col = copied<Index>(matrix.col);
  const mam::Values view{values.get(), mam::DType::float32, rows,  positions, 0, 0, crow.get(),
                         col.get(),    sizeof(Index) == 8,  stored};
  auto valid = exactly<uint8_t>(rows * positions), mask = exactly<uint8_t>(rows * positions);
  std::fill_n(valid.get(), rows * positions, uint8_t{1});
  auto importance = exactly<float>(rows * positions), context = exactly<float>(rows * width),
       penalty = exactly<float>(1),
       state = exactly<float>(mam::cpu::State::size(rows, latents, heads, width));
  auto mean = exactly<float>(rows * slopes), variance = exactly<float>(rows * slopes),
       log_partition = exactly<float>(rows * slopes);
  const mam::Moments moments{log_partition.get(), mean.get(), variance.get()};
  std::vector<Exact<float>> p;
  for (const int64_t count :
       {latents * width, 3 * width * width, 3 * width, width, width, width * width, width})
    p.push_back(some(count, 0.5));
  const mam::cpu::Projection parameters{p[0].get(), p[1].get(), p[2].get(), p[3].get(), p[4].get(),
                                        p[5].get(), latents,    heads,      width};
  const mam::Draw draw{99, 3, nullptr, nullptr, nullptr, mam::kStreamPositions};
  const std::string name =
      "unsound CSR, " + matrix.wrong + ", index of " + std::to_string(sizeof(Index)) + " bytes";
  for (const mam::Flags& flags : {mam::Flags{nullptr, 0, 0}, mam::Flags{valid.get(), positions, 1}})
    for (const bool visible : {false, true}) {
      const mam::cpu::Step step{parameters, p[6].get(), view, flags, flags,         nullptr,
                                1,          nullptr,    0.4,  draw,  {1e-8f, 1.0f}, visible};
      const std::string by_moments = error_of([&] {
        mam::cpu::value_attention(view, flags, slope.get(), slopes, moments, nullptr, {0, threads});
      });
      const std::string by_step = error_of([&] {
        mam::cpu::masking_step(
            step, {mask.get(), importance.get(), context.get(), penalty.get(), state.get()},
            threads);
      });
      expect(by_moments.find(matrix.wrong) != std::string::npos, name + ": moments " + by_moments);
      expect(by_step.find(matrix.wrong) != std::string::npos, name + ": step " + by_step);
    }
}

void check_unsound_matrices() {
  const int64_t far = int64_t{1} << 40;
  std::vector<int64_t> rising(3000);
  for (size_t i = 0; i < rising.size(); ++i) rising[i] = static_cast<int64_t>(i);
  std::vector<int64_t> twice = rising;
  twice[2999] = 7;
  const std::vector<Unsound> matrices = {
      {{0, 2, 4}, {0, 5, 1, 6}, 6, "row 1: expected columns in [0, 6); got 6"},
      {{0, 2, 4}, {-1, 5, 1, 2}, 6, "row 0: expected columns in [0, 6); got -1"},
      {{0, 3, 4}, {1, 3, 3, 0}, 6, "row 0: expected each column once; got column 3"},
      {{0, 1, 4}, {0, 4, 1, 4}, 6, "row 1: expected each column once; got column 4"},
      {{0, 3, 2, 4}, {0, 1, 2, 3}, 6, "row 1: expected crow to grow"},
      {{0, 2, 5}, {0, 1, 2, 3}, 6, "row 1: expected crow to grow"},
      {{0, -1, 4}, {0, 1, 2, 3}, 6, "row 0: expected crow to grow"},
      {{1, 2, 4}, {0, 1, 2, 3}, 6, "row 0: expected crow to begin at 0; got 1"},
      {{0, 2, 3}, {0, 1, 2, 3}, 6, "row 1: expected crow to end at the 4"},
      {{0, 4}, {0, 1, 0, 1}, 2, "row 0: expected at most 2 entries"},
      {{0, 3000}, twice, 3000, "row 0: expected each column once; got column 7"},
      {{0, 3000}, rising, 2999, "row 0: expected at most 2999 entries"},
      {{0, 0, 1}, {0}, 0, "row 1: expected at most 0 entries"},
  };
  for (const Unsound& matrix : matrices)
    for (const int threads : {1, 4}) {
      check_unsound<int64_t>(matrix, threads);
      check_unsound<int32_t>(matrix, threads);
    }
  const std::vector<Unsound> far_away = {
      {{0, 2, 4}, {0, 5, 1, far}, 6, "row 1: expected columns"},
      {{0, 2, 4}, {0, 5, -far, 1}, 6, "row 1: expected columns"},
      {{0, far, 4}, {0, 1, 2, 3}, 6, "row 0: expected crow to grow"},
      {{0, 4}, {0, int64_t{1} << 62, -(int64_t{1} << 62), 5}, 6, "row 0: expected columns"},
  };
  for (const Unsound& matrix : far_away) check_unsound<int64_t>(matrix, 2);
}

void check_latents_out_of_range() {
  const int64_t positions = 9, latents = 2, heads = 2;
  const auto values = some(positions, 1.0), slope = some(latents * heads, 1.0);
  const mam::Values view{
      values.get(), mam::DType::float32, 1, positions, positions, 1, nullptr, nullptr, false};
  auto num_masked = exactly<int32_t>(1);
  num_masked[0] = 3;
  auto mask = exactly<uint8_t>(positions);
  auto importance = exactly<float>(positions), moments = exactly<float>(latents * heads);
  for (const int64_t latent : {int64_t{2}, int64_t{-1}, int64_t{1} << 40}) {
    const std::string error = error_of([&] {
      mam::cpu::value_mask(view, {}, {}, slope.get(), latents, heads, &latent, 1, num_masked.get(),
                           {1, 0, nullptr, nullptr, nullptr, 0}, {1e-8f, 1.0f}, mask.get(),
                           importance.get(), {moments.get(), moments.get(), moments.get()}, nullptr,
                           {0, 1});
    });
    expect(error.find("latents: expected indices in [0, 2); got") == 0, "latents: " + error);
  }
}

void check_collapses() {
  for (const Sizes& size : {Sizes{1, 1, 1, 1}, Sizes{5, 2, 3, 3}, Sizes{9, 3, 11, 2},
                            Sizes{33, 8, 8, 4}, Sizes{70, 5, 16, 0}}) {
    const std::string name = std::to_string(size.latents) + " latents, " +
                             std::to_string(size.heads) + " x " + std::to_string(size.head);
    check_projections(size, name);
    check_context(size, name);
  }
}

void check_value_masks() {
  const Layout layouts[] = {Layout::contiguous, Layout::strided, Layout::transposed, Layout::csr32,
                            Layout::csr64};
  for (const Layout layout : layouts)
    for (const bool flags : {false, true})
      for (const double steepness : {0.0, 0.5, 6.0, 40.0, 3000.0})
        for (const int64_t positions : {1, 17, 64, 1300}) {
          const int64_t rows = positions == 1300 ? 3 : 9;
          Problem problem{rows,
                          positions,
                          5,
                          3,
                          layout,
                          flags,
                          positions == 64,
                          positions == 17 ? 0.9 : 0.1,
                          steepness,
                          ""};
          problem.name = "layout " + std::to_string(static_cast<int>(layout)) + ", positions " +
                         std::to_string(positions) + ", steepness " + std::to_string(steepness) +
                         (flags ? ", flags" : "");
          check_value_mask(problem, {1e-8f, steepness > 1 ? 0.5f : 1.0f}, 2);
        }
  check_value_mask({1, 2500, 16, 2, Layout::contiguous, false, false, 0.08, 0.7, "one row"},
                   {1e-8f, 1.0f}, 2);
  check_value_mask(
      {3, 2500, 16, 2, Layout::csr32, true, false, 0.08, 0.7, "more threads than rows"},
      {1e-8f, 1.0f}, 8);
  check_value_mask({5, 700, 1, 1, Layout::contiguous, true, false, 1.0, 0.7, "no zeros"},
                   {0.0f, 2.0f}, 1);
  check_value_mask({5, 700, 1, 1, Layout::csr64, false, false, 0.0, 0.7, "zeros alone"},
                   {1e-8f, 1.0f}, 1);
}

void check_selections() {
  for (const int64_t positions : {1, 15, 16, 17, 333, 1024, 1025, 5003})
    for (int kind = 0; kind < 7; ++kind)
      for (const bool flags : {false, true})
        for (const mam::Weighting weighting :
             {mam::Weighting{1e-8f, 1.0f}, mam::Weighting{0.0f, 3.0f}})
          check_select(4, positions, kind, flags, weighting);
}

// Latents, and tokens in one buffer of keys and values, (rows, positions, 2, heads, width), whose
// padding is NaN.
struct TokenProblem {
  int64_t rows, positions, latents, heads, width;
  mam::DType dtype;
  bool flags, transposed_flags, poison;
  double scale;
  std::string name;
};

double widened(const void* data, mam::DType dtype, int64_t at) {
  if (dtype == mam::DType::float32) return static_cast<const float*>(data)[at];
  const uint16_t word = static_cast<const uint16_t*>(data)[at];
  return dtype == mam::DType::float16 ? mam::cpu::from_float16(word)
                                      : mam::cpu::from_bfloat16(word);
}

// Numbers of one of the types, in exactly the memory that they need.
struct Numbers {
  Exact<float> single;
  Exact<uint16_t> half;
  mam::DType dtype;

  Numbers(int64_t count, mam::DType type)
      : single(exactly<float>(count)), half(exactly<uint16_t>(count)), dtype(type) {
    if (dtype == mam::DType::float32) half.reset();
    if (dtype != mam::DType::float32) single.reset();
    for (int64_t i = 0; i < count; ++i) put(i, static_cast<float>(4 * random_uniform() - 2));
  }
  void put(int64_t at, float x) {
    if (dtype == mam::DType::float32) single[at] = x;
    if (dtype == mam::DType::float16) half[at] = mam::cpu::to_float16(x);
    if (dtype == mam::DType::bfloat16) half[at] = mam::cpu::to_bfloat16(x);
  }
  const void* data() const {
    return dtype == mam::DType::float32 ? static_cast<const void*>(single.get()) : half.get();
  }
  void* data() {
    return dtype == mam::DType::float32 ? static_cast<void*>(single.get()) : half.get();
  }
  double operator[](int64_t at) const { return widened(data(), dtype, at); }
};

struct TokenInputs {
  mam::Tokens queries, keys, values;
  mam::Flags flags;
  const Numbers& query;
  const Numbers& tokens;  // (rows, positions, 2, heads, width)
  const Numbers& out;
  const float* logsumexp;
};

// Sums of doubles beside those of their absolute values, which bound the rounding.
struct Sums {
  Doubles sum, size;
  explicit Sums(int64_t count)
      : sum(static_cast<size_t>(count), 0.0), size(static_cast<size_t>(count), 0.0) {}
  void add(int64_t at, double term, double sized) {
    sum[static_cast<size_t>(at)] += term;
    size[static_cast<size_t>(at)] += std::fabs(sized);
  }
};

// `exists(b, l)`: whether a position is valid.
template <typename Exists>
void check_token_gradients(const TokenProblem& p, const TokenInputs& in, int threads,
                           const Exists& exists) {
  const int64_t heads = p.heads, width = p.width, slots = p.rows * p.latents * heads,
                of_latents = p.latents * heads * width,
                of_tokens = p.rows * p.positions * heads * width;
  const Numbers grad(slots * width, p.dtype);
  const auto grad_sums = exactly<float>(slots);
  for (int64_t i = 0; i < slots; ++i) grad_sums[i] = static_cast<float>(random_uniform() - 0.5);
  const auto dq = exactly<float>(of_latents), dk = exactly<float>(of_tokens),
             dv = exactly<float>(of_tokens);
  const float scale = static_cast<float>(p.scale);
  const auto run = [&](int with) {
    for (float* gradient : {dk.get(), dv.get()}) std::fill_n(gradient, of_tokens, 7.0f);
    mam::cpu::latent_attention_backward(grad.data(), grad_sums.get(), in.queries, in.keys,
                                        in.values, in.flags, in.out.data(), in.logsumexp, scale,
                                        dq.get(), dk.get(), dv.get(), nullptr, {0, with});
  };
  run(1);
  const Doubles q1 = as_doubles(dq, of_latents), k1 = as_doubles(dk, of_tokens),
                v1 = as_doubles(dv, of_tokens);
  run(threads);
  const auto same = [&](const float* now, const Doubles& before, const char* what) {
    for (size_t i = 0; i < before.size(); ++i)
      expect(now[i] == before[i] || (now[i] != now[i] && before[i] != before[i]),
             p.name + ": " + what + " by threads");
  };
  same(dq.get(), q1, "gradient of the query");
  same(dk.get(), k1, "gradient of the key");
  same(dv.get(), v1, "gradient of the value");
  if (p.poison) return;

  Sums query(of_latents), key(of_tokens), value(of_tokens);
  double sharpest = 1;
  for (int64_t b = 0; b < p.rows; ++b)
    for (int64_t n = 0; n < p.latents; ++n)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = (b * p.latents + n) * heads + h, latent = (n * heads + h) * width;
        double delta = -grad_sums[at], sized = std::fabs(delta);
        for (int64_t c = 0; c < width; ++c) {
          const double term = grad[at * width + c] * in.out[at * width + c];
          delta += term;
          sized += std::fabs(term);
        }
        for (int64_t l = 0; l < p.positions; ++l) {
          if (!exists(b, l)) continue;
          const int64_t token = ((b * p.positions + l) * 2 * heads + h) * width,
                        to = ((b * p.positions + l) * heads + h) * width;
          double score = 0, product = 0, product_sized = 0;
          for (int64_t c = 0; c < width; ++c) {
            score += scale * in.query[latent + c] * in.tokens[token + c];
            const double term = grad[at * width + c] * in.tokens[token + heads * width + c];
            product += term;
            product_sized += std::fabs(term);
          }
          sharpest = std::max(sharpest, std::fabs(score));
          const double weight = std::exp(score - in.logsumexp[at]),
                       of_score = weight * (product - delta),
                       of_score_sized = weight * (product_sized + sized);
          for (int64_t c = 0; c < width; ++c) {
            const double k = in.tokens[token + c], q = in.query[latent + c],
                         g = grad[at * width + c];
            value.add(to + c, weight * g, weight * g);
            key.add(to + c, scale * of_score * q, scale * of_score_sized * q);
            query.add(latent + c, scale * of_score * k, scale * of_score_sized * k);
          }
        }
      }
  const auto right = [&](const float* got, const Sums& wanted, const char* what) {
    for (size_t i = 0; i < wanted.sum.size(); ++i)
      expect(std::fabs(got[i] - wanted.sum[i]) <= 1e-6 * (4 + sharpest) * wanted.size[i] + 1e-30,
             p.name + ": " + what);
  };
  right(dq.get(), query, "gradient of the query");
  right(dk.get(), key, "gradient of the key");
  right(dv.get(), value, "gradient of the value");
}

void check_tokens(const TokenProblem& p, int threads) {
  const int64_t heads = p.heads, width = p.width, both = 2 * heads * width,
                slots = p.rows * p.latents * heads;
  const Numbers query(p.latents * heads * width, p.dtype);
  Numbers tokens(p.rows * p.positions * both, p.dtype), out(slots * width, p.dtype);
  auto valid = exactly<uint8_t>(p.rows * p.positions),
       mask = exactly<uint8_t>(p.rows * p.positions);
  auto importance = exactly<float>(p.rows * p.positions), logsumexp = exactly<float>(slots),
       alone = exactly<float>(slots);
  const int64_t flag_row = p.transposed_flags ? 1 : p.positions,
                flag_position = p.transposed_flags ? p.rows : 1;
  const auto exists = [&](int64_t b, int64_t l) {
    return valid[b * flag_row + l * flag_position] != 0;
  };
  for (int64_t b = 0; b < p.rows; ++b)
    for (int64_t l = 0; l < p.positions; ++l) {
      valid[b * flag_row + l * flag_position] = !p.flags || (b != 1 && random_uniform() < 0.7);
      for (int64_t i = 0; i < both && !exists(b, l); ++i)
        tokens.put((b * p.positions + l) * both + i, kNaN);
    }
  if (p.poison)
    for (int64_t i = 0; i < both; ++i) tokens.put(i, kNaN);

  auto latents = exactly<int64_t>(p.latents);
  int64_t num_chosen = 0;
  for (int64_t n = p.latents - 1; n >= 0; n -= 1 + (n > 40)) latents[num_chosen++] = n;
  const auto view = [&](const Numbers& x, int64_t from, int64_t batch, int64_t positions,
                        int64_t batch_stride, int64_t stride) {
    const char* const at =
        static_cast<const char*>(x.data()) + from * (p.dtype == mam::DType::float32 ? 4 : 2);
    return mam::Tokens{at, p.dtype, batch, positions, heads, width, batch_stride, stride, width};
  };
  const mam::Tokens queries = view(query, 0, 1, p.latents, 0, heads * width);
  const mam::Tokens keys = view(tokens, 0, p.rows, p.positions, p.positions * both, both);
  const mam::Tokens values =
      view(tokens, heads * width, p.rows, p.positions, p.positions * both, both);
  const mam::Flags flags{p.flags ? valid.get() : nullptr, flag_row, flag_position};
  const float scale = static_cast<float>(p.scale);
  auto num_masked = exactly<int32_t>(p.rows);
  for (int64_t b = 0; b < p.rows; ++b) num_masked[b] = static_cast<int32_t>(p.positions / 3);
  const mam::Draw draw{5, 3, nullptr, nullptr, nullptr, 0};
  const auto run = [&](int with) {
    mam::cpu::latent_attention(queries, keys, values, flags, scale, out.data(), logsumexp.get(),
                               nullptr, {0, with});
    mam::cpu::latent_attention(queries, keys, {}, flags, scale, nullptr, alone.get(), nullptr,
                               {0, with});
    mam::cpu::token_mask(queries, keys, logsumexp.get(), latents.get(), num_chosen, flags, flags,
                         scale, num_masked.get(), draw, {1e-8f, 1.0f}, mask.get(), importance.get(),
                         nullptr, {0, with});
  };
  run(1);
  const Doubles of_one = as_doubles(importance, p.rows * p.positions),
                sums_of_one = as_doubles(logsumexp, slots);
  Doubles out_of_one;
  for (int64_t i = 0; i < slots * width; ++i) out_of_one.push_back(out[i]);
  run(threads);
  const auto same = [](double one, double other) {
    return one == other || (one != one && other != other);
  };
  for (int64_t i = 0; i < p.rows * p.positions; ++i)
    expect(same(importance[i], of_one[static_cast<size_t>(i)]), p.name + ": importance by threads");
  for (int64_t i = 0; i < slots; ++i)
    expect(same(logsumexp[i], sums_of_one[static_cast<size_t>(i)]), p.name + ": sums by threads");
  for (int64_t i = 0; i < slots * width; ++i)
    expect(same(out[i], out_of_one[static_cast<size_t>(i)]), p.name + ": output by threads");
  expect_same(alone.get(), logsumexp.get(), slots, p.name + ": log-sum-exp alone");
  check_token_gradients(p, {queries, keys, values, flags, query, tokens, out, logsumexp.get()},
                        threads, exists);

  const double rounding = p.dtype == mam::DType::float32   ? 0
                          : p.dtype == mam::DType::float16 ? 0x1p-11
                                                           : 0x1p-8;
  for (int64_t b = 0; b < p.rows; ++b) {
    Doubles wanted_importance(static_cast<size_t>(p.positions), 0.0);
    double sharpest = 1;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t n = 0; n < p.latents; ++n) {
        Doubles score(static_cast<size_t>(p.positions), -kInf),
            mean(static_cast<size_t>(width), 0.0);
        double largest = -kInf, total = 0;
        for (int64_t l = 0; l < p.positions; ++l) {
          if (!exists(b, l)) continue;
          double& s = score[static_cast<size_t>(l)] = 0;
          for (int64_t c = 0; c < width; ++c)
            s += scale * query[(n * heads + h) * width + c] *
                 tokens[(b * p.positions + l) * both + h * width + c];
          largest = s > largest ? s : largest;
          sharpest = std::max(sharpest, std::fabs(s));
        }
        for (const double s : score) total += s == -kInf ? 0.0 : std::exp(s - largest);
        const double sum = largest + std::log(total);
        const int64_t at = (b * p.latents + n) * heads + h;
        expect(close(logsumexp[at], sum, 2e-6), p.name + ": log-sum-exp");
        const bool is_chosen = std::count(latents.get(), latents.get() + num_chosen, n) > 0;
        for (int64_t l = 0; l < p.positions; ++l) {
          const double weight = exists(b, l) ? std::exp(score[static_cast<size_t>(l)] - sum) : 0.0;
          if (is_chosen) wanted_importance[static_cast<size_t>(l)] += weight;
          for (int64_t c = 0; c < width && exists(b, l); ++c)
            mean[static_cast<size_t>(c)] +=
                weight * tokens[(b * p.positions + l) * both + (heads + h) * width + c];
        }
        for (int64_t c = 0; c < width; ++c)
          expect(close(static_cast<float>(out[at * width + c]), mean[static_cast<size_t>(c)],
                       1e-6 * (4 + sharpest) + rounding),
                 p.name + ": output");
      }
    for (int64_t l = 0; l < p.positions; ++l)
      expect(close(importance[b * p.positions + l], wanted_importance[static_cast<size_t>(l)],
                   1e-6 * (4 + sharpest)),
             p.name + ": importance");
    std::vector<uint8_t> allowed(static_cast<size_t>(p.positions));
    for (int64_t l = 0; l < p.positions; ++l) allowed[static_cast<size_t>(l)] = exists(b, l);
    check_draw(p.name, importance.get() + b * p.positions, allowed.data(), p.positions,
               num_masked[b], 5, static_cast<uint32_t>(b), {1e-8f, 1.0f},
               mask.get() + b * p.positions);
  }
}

void check_token_paths() {
  struct Shape {
    int64_t rows, positions, latents, heads, width;
  };
  const Shape shapes[] = {{2, 1, 1, 1, 1},     {3, 67, 5, 3, 20}, {2, 64, 33, 2, 16},
                          {3, 130, 70, 1, 37}, {2, 33, 16, 2, 3}, {1, 200, 100, 2, 8}};
  for (const Shape& s : shapes)
    for (const mam::DType dtype : {mam::DType::float32, mam::DType::float16, mam::DType::bfloat16})
      for (const bool flags : {false, true})
        for (const double scale : {0.2, 20.0}) {
          const std::string name = "tokens " + std::to_string(s.positions) + ", type " +
                                   std::to_string(static_cast<int>(dtype)) +
                                   (flags ? ", flags" : "") + ", scale " + std::to_string(scale);
          check_tokens({s.rows, s.positions, s.latents, s.heads, s.width, dtype, flags,
                        s.width == 20, false, scale, name},
                       3);
        }
  check_tokens(
      {2, 70, 18, 2, 8, mam::DType::float32, false, false, true, 0.3, "tokens, one of them NaN"},
      2);
}

// Every number that a half has comes back; what lies between two goes to the nearer, or to the even
// one.
void check_halves() {
  for (uint32_t word = 0; word < 0x10000u; ++word) {
    const uint16_t half = static_cast<uint16_t>(word), next = static_cast<uint16_t>(word + 1);
    const float single = mam::cpu::from_float16(half), brain = mam::cpu::from_bfloat16(half);
    expect(single != single ? std::isnan(mam::cpu::from_float16(mam::cpu::to_float16(single)))
                            : mam::cpu::to_float16(single) == half,
           "float16 there and back");
    expect(brain != brain ? std::isnan(mam::cpu::from_bfloat16(mam::cpu::to_bfloat16(brain)))
                          : mam::cpu::to_bfloat16(brain) == half,
           "bfloat16 there and back");
    const uint16_t even = static_cast<uint16_t>(word + (word & 1u));
    if ((word & 0x7FFFu) < 0x7BFFu)
      expect(mam::cpu::to_float16(0.5f * (single + mam::cpu::from_float16(next))) == even,
             "float16, a tie");
    if ((word & 0x7FFFu) < 0x7F00u)
      expect(mam::cpu::to_bfloat16(0.5f * brain + 0.5f * mam::cpu::from_bfloat16(next)) == even,
             "bfloat16, a tie");
  }
  expect(mam::cpu::to_float16(65519.9f) == 0x7BFFu && mam::cpu::to_float16(65520.0f) == 0x7C00u,
         "float16, the largest");
}

}  // namespace

int main() {
  std::printf("%s\n", mam::cpu::kernels().name);
  check_value_masks();
  check_selections();
  check_fused();
  check_collapses();
  check_steps();
  check_unsound_matrices();
  check_latents_out_of_range();
  check_halves();
  check_token_paths();
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
