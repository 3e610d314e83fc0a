// Products of the size of the parameters, whose cost does not depend on the batch.

#include "cpu/collapse.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/workers.h"

namespace mam {
namespace cpu {

namespace {

// out = weight^T matrix: `outs` rows from `rows` of them; weight (rows, outs).
void product(const float* weight, const float* matrix, int64_t rows, int64_t outs, int64_t width,
             float* out) {
  kernels().combine({matrix, rows, width, width, weight, outs, 1, out, outs, width, false});
}

// out = weight matrix: weight (outs, rows).
void product_by_rows(const float* weight, const float* matrix, int64_t rows, int64_t outs,
                     int64_t width, float* out, bool add = false) {
  kernels().combine({matrix, rows, width, width, weight, 1, rows, out, outs, width, add});
}

double dot(const float* a, const float* b, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += static_cast<double>(a[i]) * b[i];
  return total;
}

// The part of a cell's attended output that does not depend on its means: r of collapse.py.
void offset_of(const ContextInput& from, int64_t row, float* offset) {
  const bool any = from.occupied[row] != 0.0f;
  for (int64_t c = 0; c < from.width; ++c)
    offset[c] = from.out_bias[c] + (any ? from.constant[c] : 0.0f);
}

constexpr int64_t kBlock = 64;  // rows or columns of a matrix that a thread takes at a time

int64_t blocks_of(int64_t size, int64_t block = kBlock) { return (size + block - 1) / block; }

struct Range {
  int64_t first, count;
  int64_t end() const { return first + count; }
};

Range range_of(int64_t size, int64_t block) {
  return {block * kBlock, std::min(kBlock, size - block * kBlock)};
}

// Tasks that do not depend on each other, in groups: `count` items of each body.
class Tasks {
 public:
  template <typename Body>
  Tasks& add(int64_t count, Body body) {
    groups_.push_back({count, body});
    return *this;
  }

  void run(int threads) const {
    int64_t items = 0;
    for (const Group& group : groups_) items += group.count;
    parallel_for(items, threads_for(items, threads), [this](int64_t item, int) {
      for (const Group& group : groups_) {
        if (item < group.count) return group.body(item);
        item -= group.count;
      }
    });
  }

 private:
  struct Group {
    int64_t count;
    std::function<void(int64_t)> body;
  };
  std::vector<Group> groups_;
};

// Cells are summed over in so many parts, whatever the number of threads, and the parts in order.
constexpr int64_t kParts = 8;

int64_t rows_of_part(int64_t rows) { return (rows + kParts - 1) / kParts; }

// Handing work to a thread that is awake costs about a microsecond, as do so many multiplications.
int threads_worth(int64_t multiplications, int threads) {
  return multiplications < (1 << 15) ? 1 : threads;
}

}  // namespace

void project(const Projection& from, const Projected& to, int threads) {
  const Kernels& run = kernels();
  const int64_t width = from.width, heads = from.heads, head = from.head_width(),
                square = width * width;
  const float *const of_keys = from.in_weight + square, *const of_values = of_keys + square;
  float *const key = to.unit, *const gain = key + width,
               *const nothing = gain + width;  // nothing: e
  threads = threads_worth(4 * square, threads);
  Tasks()
      .add(blocks_of(width),  // keys of a unit
           [&](int64_t i) {
             const Range r = range_of(width, i);
             run.dots(of_keys + r.first * width, r.count, width, width, from.token_weight,
                      key + r.first);
           })
      .add(blocks_of(width),  // values of a unit and of nothing
           [&](int64_t i) {
             const Range r = range_of(width, i);
             run.dots(of_values + r.first * width, r.count, width, width, from.token_weight,
                      gain + r.first);
             run.dots(of_values + r.first * width, r.count, width, width, from.token_bias,
                      nothing + r.first);
             for (int64_t c = r.first; c < r.end(); ++c) nothing[c] += from.in_bias[2 * width + c];
           })
      .run(threads);

  const float scale = 1.0f / std::sqrt(static_cast<float>(head));
  Buffer<float> bias(heads);
  Tasks()
      .add(heads,
           [&](int64_t h) {
             product(key + h * head, from.in_weight + h * head * width, head, 1, width,
                     to.folded + h * width);
             bias[h] = static_cast<float>(dot(key + h * head, from.in_bias + h * head, head));
             run.dots(from.out_weight + h * head, width, head, width, gain + h * head,
                      to.directions + h * width);
           })
      .add(blocks_of(width),
           [&](int64_t i) {
             const Range r = range_of(width, i);
             run.dots(from.out_weight + r.first * width, r.count, width, width, nothing,
                      to.constant + r.first);
           })
      .run(threads);

  Tasks()
      .add(blocks_of(from.num_latents),
           [&](int64_t i) {
             const Range r = range_of(from.num_latents, i);
             for (int64_t n = r.first; n < r.end(); ++n) {
               float* const slope = to.slope + n * heads;
               run.dots(to.folded, heads, width, width, from.latents + n * width, slope);
               for (int64_t h = 0; h < heads; ++h) slope[h] = scale * (slope[h] + bias[h]);
             }
           })
      .run(threads);
}

void project_backward(const Projection& from, const float* folded, const float* unit,
                      const ProjectedGradient& incoming, const ProjectionGradient& outgoing,
                      int threads) {
  const Kernels& run = kernels();
  const int64_t width = from.width, heads = from.heads, head = from.head_width(),
                latents = from.num_latents, square = width * width;
  const float *const key = unit, *const gain = key + width;  // and the value of nothing after them
  const float scale = 1.0f / std::sqrt(static_cast<float>(head));
  threads = threads_worth(8 * square, threads);

  // Latents and what the slopes leave for the queries: a = scale (latents folded^T + bias)
  Buffer<float> grad_slope(latents * heads), grad_folded(heads * width), grad_bias(heads);
  std::fill_n(grad_bias.get(), heads, 0.0f);
  for (int64_t n = 0; n < latents; ++n)
    for (int64_t h = 0; h < heads; ++h) {
      grad_slope[n * heads + h] = scale * incoming.slope[n * heads + h];
      grad_bias[h] += grad_slope[n * heads + h];
    }
  // Keys and values of a unit, and the value of nothing, in that order; each of the last two beside
  // its tokens' gradient
  Buffer<float> grad_unit(3 * width);
  float *const grad_key = grad_unit.get(), *const grad_gain = grad_key + width,
               *const grad_nothing = grad_gain + width;
  Tasks()
      .add(blocks_of(width),
           [&](int64_t i) {
             const Range r = range_of(width, i);
             run.combine({from.latents + r.first, latents, r.count, width, grad_slope.get(), heads,
                          1, grad_folded.get() + r.first, heads, width, false});
             run.combine({from.out_weight + r.first, width, r.count, width, incoming.constant, 1, 0,
                          grad_nothing + r.first, 1, width, false});
           })
      .add(blocks_of(latents),
           [&](int64_t i) {
             const Range r = range_of(latents, i);
             product_by_rows(grad_slope.get() + r.first * heads, folded, heads, r.count, width,
                             outgoing.latents + r.first * width);
           })
      .run(threads);

  // The output's weight, head by head: rows (gain, value of nothing), weighted by the gradients of
  // (direction, constant)
  Tasks()
      .add(heads,
           [&](int64_t h) {
             const int64_t first = h * head;
             run.dots(from.in_weight + first * width, head, width, width,
                      grad_folded.get() + h * width, grad_key + first);
             for (int64_t i = first; i < first + head; ++i)
               grad_key[i] += grad_bias[h] * from.in_bias[i];
             run.combine({from.out_weight + first, width, head, width,
                          incoming.directions + h * width, 1, 0, grad_gain + first, 1, width,
                          false});
             run.combine({grad_folded.get() + h * width, 1, width, width, key + first, 0, 1,
                          outgoing.in_weight + first * width, head, width,
                          false});  // the queries' weight: key (outer) gradient of folded
             for (int64_t i = first; i < first + head; ++i)
               outgoing.in_bias[i] = key[i] * grad_bias[h];
             Buffer<float> weight(2 * width);
             std::copy_n(incoming.directions + h * width, width, weight.get());
             std::copy_n(incoming.constant, width, weight.get() + width);
             run.combine({gain + first, 2, head, width, weight.get(), width, 1,
                          outgoing.out_weight + first, width, width, false});
           })
      .run(threads);

  // Weights of keys and values: both are outer products with what a token is
  Buffer<float> token(2 * width);
  std::copy_n(from.token_weight, width, token.get());
  std::copy_n(from.token_bias, width, token.get() + width);
  Tasks()
      .add(blocks_of(width),
           [&](int64_t i) {
             const Range r = range_of(width, i);
             const float* const columns = from.in_weight + square + r.first;
             run.combine({columns, 2 * width, r.count, width, grad_key, 1, 0,
                          outgoing.token_weight + r.first, 1, width, false});
             run.combine({columns + square, width, r.count, width, grad_nothing, 1, 0,
                          outgoing.token_bias + r.first, 1, width, false});
           })
      .add(blocks_of(width),
           [&](int64_t i) {
             const Range r = range_of(width, i);
             float *const keys = outgoing.in_weight + square + r.first * width, *const values =
                                                                                    keys + square;
             run.combine({token.get(), 1, width, width, grad_key + r.first, 0, 1, keys, r.count,
                          width, false});
             run.combine({token.get(), 2, width, width, grad_gain + r.first, width, 1, values,
                          r.count, width, false});
           })
      .run(threads);
  // The constant of a key cancels in the softmax, and its bias has no gradient.
  std::fill_n(outgoing.in_bias + width, width, 0.0f);
  std::copy_n(grad_nothing, width, outgoing.in_bias + 2 * width);
}

void context(const ContextInput& from, const ContextOutput& to, int threads) {
  const int64_t rows = from.rows, latents = from.num_latents, heads = from.heads,
                width = from.width;
  for (int64_t g = 0; g < heads; ++g)
    kernels().dots(from.directions, heads, width, width, from.directions + g * width,
                   to.gram + g * heads);

  const int64_t each = rows_of_part(rows), parts = rows ? blocks_of(rows, each) : 0,
                squares = heads * heads;
  Buffer<float> share(latents);
  Buffer<double> second(parts * squares), cross(parts);  // over all cells, in double
  std::fill_n(share.get(), latents, 1.0f / static_cast<float>(latents));
  // cross: sum of |r|^2 + 2 mean(m) P r^T = 2 r . (context - r / 2)
  parallel_for(parts, threads_for(parts, threads_worth(rows * latents * squares, threads)),
               [&](int64_t part, int) {
                 Buffer<float> offset(width), products(squares);
                 double* const sum = second.get() + part * squares;
                 std::fill_n(sum, squares, 0.0);
                 cross[part] = 0;
                 for (int64_t row = part * each; row < std::min(rows, (part + 1) * each); ++row) {
                   const float* const mean = from.mean + row * latents * heads;
                   float* const out = to.context + row * width;
                   float* const average = to.average + row * heads;
                   product(share.get(), mean, latents, 1, heads, average);
                   product(mean, mean, latents, heads, heads, products.get());
                   for (int64_t i = 0; i < squares; ++i) sum[i] += products[i];
                   offset_of(from, row, offset.get());
                   std::copy_n(offset.get(), width, out);
                   product_by_rows(average, from.directions, heads, 1, width, out, true);
                   for (int64_t c = 0; c < width; ++c)
                     cross[part] += static_cast<double>(offset[c]) * (out[c] - 0.5f * offset[c]);
                 }
               });
  double squared_norm = 0;
  for (int64_t part = 0; part < parts; ++part)
    squared_norm += 2.0 * static_cast<double>(latents) * cross[part];
  for (int64_t i = 0; i < squares; ++i) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += second[part * squares + i];
    to.second[i] = static_cast<float>(total);
    squared_norm += total * to.gram[i];
  }
  *to.penalty = static_cast<float>(squared_norm / static_cast<double>(std::max<int64_t>(rows, 1)));
}

void context_backward(const ContextInput& from, const float* average, const float* second,
                      const float* gram, const float* grad_context, float grad_penalty,
                      const ContextGradient& outgoing, int threads) {
  const int64_t rows = from.rows, latents = from.num_latents, heads = from.heads,
                width = from.width, slopes = latents * heads;
  const float twice = 2.0f * grad_penalty / static_cast<float>(std::max<int64_t>(rows, 1)),
              by_latents = twice * static_cast<float>(latents);
  const int64_t each = rows_of_part(rows), parts = rows ? blocks_of(rows, each) : 0,
                sums = slopes + 2 * width;
  Buffer<float> quadratic(heads * heads), pulled(rows * width);
  Buffer<double> partial(parts * sums);  // slopes, constant and bias over the cells of a part: in
                                         // double, for there may be many
  for (int64_t i = 0; i < heads * heads; ++i) quadratic[i] = twice * gram[i];
  parallel_for(parts, threads_for(parts, threads_worth(rows * slopes * heads, threads)),
               [&](int64_t part, int) {
                 Buffer<float> offset(width), shared(heads), spread(width), grad_mean(slopes);
                 double *const slope = partial.get() + part * sums,
                               *const constant = slope + slopes, *const bias = constant + width;
                 std::fill_n(slope, sums, 0.0);
                 for (int64_t row = part * each; row < std::min(rows, (part + 1) * each); ++row) {
                   float* const pull = pulled.get() + row * width;
                   offset_of(from, row, offset.get());
                   for (int64_t c = 0; c < width; ++c)
                     pull[c] = grad_context[row * width + c] + by_latents * offset[c];

                   kernels().dots(from.directions, heads, width, width, pull, shared.get());
                   for (int64_t h = 0; h < heads; ++h) shared[h] /= static_cast<float>(latents);
                   for (int64_t n = 0; n < latents; ++n)
                     std::copy_n(shared.get(), heads, grad_mean.get() + n * heads);
                   product_by_rows(from.mean + row * slopes, quadratic.get(), heads, latents, heads,
                                   grad_mean.get(), true);
                   const float* const variance = from.variance + row * slopes;
                   for (int64_t i = 0; i < slopes; ++i)
                     slope[i] += static_cast<double>(grad_mean[i]) * variance[i];

                   product_by_rows(average + row * heads, from.directions, heads, 1, width,
                                   spread.get());
                   const bool any = from.occupied[row] != 0.0f;
                   for (int64_t c = 0; c < width; ++c) {
                     const double gradient = pull[c] + by_latents * spread[c];
                     bias[c] += gradient;
                     if (any) constant[c] += gradient;
                   }
                 }
               });
  product(average, pulled.get(), rows, heads, width, outgoing.directions);
  Buffer<float> moments(heads * heads);
  for (int64_t i = 0; i < heads * heads; ++i) moments[i] = twice * second[i];
  product_by_rows(moments.get(), from.directions, heads, heads, width, outgoing.directions, true);
  Buffer<double> total(sums);
  std::fill_n(total.get(), sums, 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < sums; ++i) total[i] += partial[part * sums + i];
  for (int64_t i = 0; i < slopes; ++i) outgoing.slope[i] = static_cast<float>(total[i]);
  for (int64_t c = 0; c < width; ++c) {
    outgoing.constant[c] = static_cast<float>(total[slopes + c]);
    outgoing.out_bias[c] = static_cast<float>(total[slopes + width + c]);
  }
}

}  // namespace cpu
}  // namespace mam
