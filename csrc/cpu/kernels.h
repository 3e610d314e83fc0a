// The CPU kernels of one row or one tile, compiled once for each instruction set and reached
// through a table of pointers.
//
// Everything that depends on the instruction set lives in namespace mam::cpu::MAM_ISA and calls no
// inline function from outside: the linker merges those, and AVX-512 code would run on machines
// without it. Hence plain structures and raw pointers, and nothing of the standard library that has
// a body. Parallelism, memory and exceptions belong to the callers (value.cpp, selection.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "mam/ops.h"

namespace mam {
namespace cpu {

// Buffers that kernels read or fill in whole vectors need this many elements beyond their nominal
// size.
constexpr int64_t kPadding = 64;

// Keys of the race are compared as the bits of float32 >= 0, which order as integers do. Positions
// that cannot be drawn have the last one; those that can are below that of infinity.
constexpr int32_t kNeverDrawn = 0x7FFFFFFF, kInfiniteKey = 0x7F800000;

// The values of a row that are not zero, and where they stand. The zeros are known by their number.
struct Entries {
  const float* value;
  const int32_t* position;
  int64_t count, zeros;
};

// How exp(slope x) is evaluated over a row's values: in equal panels of the interval that holds
// them, each with a power series about its middle, in t = (x - middle) / half.
constexpr int kMaxOrder = 40, kMaxPanels = 16;
struct Series {
  int panels, order;  // `order` terms in each
  double low,
      half;  // where the interval begins, and half the width of a panel; 0 where all values are one
  double centre;   // of the interval
  int zero_panel;  // the panel of 0, or -1 where 0 is outside
};

struct RowMoments {
  float* log_partition;  // null: not wanted
  float* mean;
  float* variance;
  double* inverse;  // exp(slope centre) / M, (slopes, padded)
};

// Memory along a row that is needed soon, `bytes` for each position: fetched during arithmetic that
// reads little memory.
struct Ahead {
  const void* from;
  int64_t bytes;
};

// The words of the random stream of one row.
struct RowDraw {
  uint64_t seed;
  uint32_t sample_id, step, stream;
};

// out[o] = sum over rows of weight[row, o] matrix[row], for `outs` rows of `width`; with `add` on
// top of what is there. Strides in elements.
struct Combination {
  const float* matrix;
  int64_t rows, width, stride;
  const float* weight;
  int64_t weight_row, weight_out;
  float* out;
  int64_t outs, out_stride;
  bool add;
};

// Latents of attention are stored in blocks of `Kernels::block`, padded with zeros: (blocks, width,
// block) for queries. Tokens come in tiles of at most kTileTokens, as rows of `pitch` floats; both
// are padded with zeros to a multiple of kTokenPadding.
constexpr int64_t kTileTokens = 64, kTokenPadding = 16;

// Some tokens of a head, `width` numbers each, where they are: those at `position`, `stride`
// elements apart.
struct TokenRows {
  const void* data;
  DType dtype;
  int64_t stride, width;
  const int64_t* position;
  int64_t count;
};

// Latents of one head, and a tile of tokens.
struct AttentionTile {
  const float* query;  // scaled
  int64_t latents, width;
  const float* key;    // (tokens, pitch)
  const float* value;  // the same, or null: not wanted
  int64_t tokens, pitch;
  float* scores;  // scratch: (kTileTokens, block)
};

// What is known of the softmax of each latent: largest score, sum of exp(score - largest), both
// (blocks, block), and the values summed with these weights, (blocks, pitch, block).
struct SoftmaxState {
  float* largest;
  float* total;
  float* output;
};

// The gradient of the attention of a tile. Latents of the outputs' gradients are stored as queries
// are, and latents as rows too: (blocks * block, pitch).
struct AttentionGradient {
  AttentionTile tile;
  const float* query_rows;  // scaled
  const float* grad;
  const float* grad_rows;
  const float* logsumexp;  // (blocks, block)
  const float* delta;      // the same: gradient times output, less that of the log-sum-exp
  float* grad_scores;      // scratch: as scores
  float* grad_query;       // (blocks, pitch, block): added to, without the scale
  float* grad_key;         // (tokens, pitch)
  float* grad_value;       // (tokens, pitch)
};

struct Kernels {
  const char* name;

  // Split a row into its values that are not zero (returned count) and the number of zeros; only
  // where `valid` (null: everywhere).
  int64_t (*compact)(const float* row, const uint8_t* valid, int64_t positions, float* value,
                     int32_t* position, int64_t* zeros);
  // Smallest and largest; false where a value is NaN or infinite.
  bool (*range)(const float* value, int64_t count, float* low, float* high);

  // Order entries by panel; offsets: (panels + 1,).
  void (*partition)(const Series& series, const Entries& entries, float* value, int32_t* position,
                    int64_t* offsets);
  // coefficients: [panel][order] = sum over the values of t^j / j!. Entries are in order of their
  // panels, at `offsets`.
  void (*power_sums)(const Series& series, const float* value, const int64_t* offsets,
                     int64_t zeros, double* coefficients);
  // slope: padded to a whole tile.
  void (*moments)(const Series& series, const double* coefficients, const double* slope,
                  int64_t slopes, const RowMoments& out);
  // f(x) = sum over the slopes of exp(slope x) / M at the entries and at 0. slope and inverse:
  // those of the chosen slopes, padded with zeros to a whole tile.
  void (*importance)(const Series& series, const double* slope, const double* inverse,
                     int64_t slopes, const float* value, const int64_t* offsets, float* importance,
                     float* of_zero);

  // The same by exponentials of every value, for rows and slopes beyond the reach of the series.
  // log_partition of doubles: (slopes,).
  void (*direct_moments)(const Entries& entries, const float* slope, int64_t slopes,
                         double* log_partition, const RowMoments& out);
  void (*direct_importance)(const Entries& entries, const float* slope, const double* log_partition,
                            int64_t slopes, float* importance, float* of_zero);

  // Keys of the race of a row; positions whose flag is 0 or whose weight cannot be drawn get
  // kNeverDrawn. Returns how many can be drawn.
  int64_t (*race)(const float* weight, const uint8_t* flags, int64_t positions, const RowDraw& draw,
                  const Weighting& weighting, int32_t* keys);
  // The uniforms of a row as keys: those of positions that share one weight.
  int64_t (*uniform_race)(const uint8_t* flags, int64_t positions, const RowDraw& draw,
                          const Ahead* ahead, int num_ahead, int32_t* keys);
  // Replace the uniforms at the entries by the keys of their weights, on the scale of the uniforms.
  // Returns how many became undrawable.
  int64_t (*adjust)(const float* importance, const int32_t* position, int64_t count, float of_zero,
                    const Weighting& weighting, int32_t* keys);
  // The k-th smallest key, 1 <= k <= positions that can be drawn. Keys are padded to whole vectors
  // with kNeverDrawn; scratch holds twice positions + kPadding.
  int32_t (*threshold)(const int32_t* keys, int64_t positions, int64_t drawable, int64_t k,
                       int32_t* scratch);
  // mask = the k smallest keys, given the k-th; equal keys go to the lower position.
  void (*mark)(const int32_t* keys, int64_t positions, int32_t threshold, int64_t k, uint8_t* mask);
  // What race, threshold and mark draw, in one pass over most rows, for k >= 1. False where it
  // takes those three; then keys, scratch and mask, which are as theirs, hold nothing of use.
  bool (*draw_fused)(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
                     const RowDraw& draw, const Weighting& weighting, int32_t* keys,
                     int32_t* scratch, uint8_t* mask);

  // The probability of each position to be among the k drawn of a row; returns the time of the
  // race at which so many are expected, infinite where all that can be drawn are.
  double (*inclusion)(const float* weight, const uint8_t* flags, int64_t positions, int64_t k,
                      float* probability);
  // The gradient of the weights, given that of the probabilities.
  void (*inclusion_gradient)(const float* grad, const float* weight, const float* probability,
                             double time, int64_t positions, float* out);

  // out[i] = matrix[i] . x for rows that are `stride` apart.
  void (*dots)(const float* matrix, int64_t rows, int64_t width, int64_t stride, const float* x,
               float* out);
  void (*combine)(const Combination& combination);

  // Latents in a block of attention.
  int64_t block;
  // Tokens as a tile; (kTileTokens, pitch).
  void (*gather)(const TokenRows& rows, int64_t pitch, float* tile);
  // A tile more in the softmax of some latents.
  void (*attend)(const AttentionTile& tile, const SoftmaxState& state);
  // importance[token] += sum over the latents of exp(score - logsumexp), which is padded as latents
  // are; the value is not read.
  void (*token_importance)(const AttentionTile& tile, const float* logsumexp, float* importance);
  void (*attend_backward)(const AttentionGradient& gradient);
};

// The table for this machine. MAM_CPU_ISA=baseline|avx2|avx512, read once, lowers it.
const Kernels& kernels();

}  // namespace cpu
}  // namespace mam
