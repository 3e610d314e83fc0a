// The operations that a native backend implements, and the plain structures they take.
//
// This header knows nothing of torch or Python: raw pointers, sizes and strides (in elements).
// bindings.cpp exposes it; csrc/cpu and csrc/cuda implement it, each in its own namespace
// (MAM_BACKEND). Sizes and strides are 64-bit, so that no address is computed in 32.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef MAM_BACKEND
#error "define MAM_BACKEND as the namespace of the implementation: cpu or cuda"
#endif

namespace mam {

enum class DType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Values of (rows, positions): dense and strided where `crow` is null, else CSR, whose missing
// entries are zeros that take part. CSR: `data` and `col` hold the `stored` entries, contiguous;
// `crow` has rows + 1 offsets; both index arrays are int64 or int32. Nothing promises that the
// indices are sound: on the CPU unsound ones are an error, on a GPU they are not followed.
struct Values {
  const void* data;
  DType dtype;
  int64_t rows, positions;
  int64_t stride_row, stride_position;
  const void* crow;
  const void* col;
  bool index64;
  int64_t stored = 0;
};

// (rows, positions) booleans of one byte each. Null data stands for "all true".
struct Flags {
  const uint8_t* data;
  int64_t stride_row, stride_position;
};

// Where the random bits come from: Philox4x32-10 with key = seed and counter = (position >> 2,
// sample id, step, stream). A non-null pointer wins over the value beside it. sample_ids: int64,
// the low 32 bits count; null: the row's index.
struct Draw {
  uint64_t seed;
  uint32_t step;
  const int64_t* seed_ptr;
  const int64_t* step_ptr;
  const int64_t* sample_ids;
  uint32_t stream;
};

// How importance becomes the weight of a draw: (importance + eps) ** inverse_temperature.
struct Weighting {
  float eps;
  float inverse_temperature;
};

// Moments of the values under the attention of each slope; (rows, slopes) float32, contiguous.
struct Moments {
  float* log_partition;
  float* mean;
  float* variance;
};

// A strided (batch, positions, heads, width) tensor; the innermost stride is 1. For queries the
// batch stride is 0 and `positions` counts the latents.
struct Tokens {
  const void* data;
  DType dtype;
  int64_t batch, positions, heads, width;
  int64_t stride_batch, stride_position, stride_head;
};

// Where a launch runs: a cudaStream_t on the GPU, the number of threads on the CPU.
struct Launch {
  uint64_t stream;
  int threads;
};

namespace MAM_BACKEND {

// Bytes of scratch memory that value_attention / value_mask / select need; 0 where they need none
// from the caller.
size_t value_workspace(const Values& values, int64_t slopes);
size_t select_workspace(int64_t rows, int64_t positions);

// log M, mean and variance for every (row, slope); slope: float32 (slopes,).
void value_attention(const Values& values, const Flags& valid, const float* slope, int64_t slopes,
                     const Moments& out, void* workspace, const Launch& launch);

// The same, and the masking step: importance over the heads of the `latents` (indices, ascending or
// not), then the draw. slope is (latent, head) contiguous; num_masked: int32 (rows,); mask: uint8
// (rows, positions); importance: float32, same shape.
void value_mask(const Values& values, const Flags& valid, const Flags& maskable, const float* slope,
                int64_t num_latents, int64_t heads, const int64_t* latents, int64_t num_chosen,
                const int32_t* num_masked, const Draw& draw, const Weighting& weighting,
                uint8_t* mask, float* importance, const Moments& out, void* workspace,
                const Launch& launch);

// num_samples[row] positions of each row without replacement, in proportion to (weight + eps) **
// inverse_temperature; `weights` is dense.
void select(const Values& weights, const Flags& valid, const int32_t* num_samples, const Draw& draw,
            const Weighting& weighting, uint8_t* mask, void* workspace, const Launch& launch);

// How likely select draws each position: 1 - exp(-weight time), float32 (rows, positions), with the
// time of each row, float64 (rows,), for which they sum to num_samples; infinite where every
// position that can be drawn is.
void inclusion_probabilities(const Values& weights, const Flags& valid, const int32_t* num_samples,
                             float* probability, double* time, const Launch& launch);
// grad and probability contiguous; grad_weights float32, contiguous.
void inclusion_probabilities_backward(const float* grad, const Values& weights,
                                      const float* probability, const double* time,
                                      float* grad_weights, const Launch& launch);

// `size` of `num_latents` indices, uniformly without replacement, ascending; int64 (size,).
// sample_ids must be null: the sample id is 0.
void draw_latents(int64_t num_latents, int64_t size, const Draw& draw, int64_t* out,
                  const Launch& launch);

// Attention of the latents over tokens. out: (batch, latents, heads, width), the dtype of the
// query, contiguous; logsumexp: float32 (batch, latents, heads). A null `value` leaves out alone.
size_t attention_workspace(const Tokens& query, const Tokens& key);
void latent_attention(const Tokens& query, const Tokens& key, const Tokens& value,
                      const Flags& valid, float scale, void* out, float* logsumexp, void* workspace,
                      const Launch& launch);

// Sum over the heads of the chosen latents of exp(scale * q.k - logsumexp): float32 (batch,
// positions), 0 where not valid.
void attention_importance(const Tokens& query, const Tokens& key, const float* logsumexp,
                          const int64_t* latents, int64_t num_chosen, const Flags& valid,
                          float scale, float* importance, const Launch& launch);

// The same and the draw.
void token_mask(const Tokens& query, const Tokens& key, const float* logsumexp,
                const int64_t* latents, int64_t num_chosen, const Flags& valid,
                const Flags& maskable, float scale, const int32_t* num_masked, const Draw& draw,
                const Weighting& weighting, uint8_t* mask, float* importance, void* workspace,
                const Launch& launch);

// grad_out like out, contiguous; grad_logsumexp float32 or null; dq (latents, heads, width), dk and
// dv (batch, positions, heads, width), float32, contiguous.
size_t attention_backward_workspace(const Tokens& query, const Tokens& key);
void latent_attention_backward(const void* grad_out, const float* grad_logsumexp,
                               const Tokens& query, const Tokens& key, const Tokens& value,
                               const Flags& valid, const void* out, const float* logsumexp,
                               float scale, float* dq, float* dk, float* dv, void* workspace,
                               const Launch& launch);

}  // namespace MAM_BACKEND
}  // namespace mam
