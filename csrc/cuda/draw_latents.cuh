// The draw of the latents that decide: uniformly without replacement.
#pragma once

#include "race.cuh"

namespace mam::cuda {

// The key of a latent: its uniform itself, computed again whenever it is looked at.
struct UniformKeys {
  RandomRow random;

  __device__ uint32_t operator()(int64_t n) const {
    return __float_as_uint(uniform(random.word(n)));
  }
};

// One block calls this: `size` of the latents, ascending.
__device__ inline void choose_latents(int64_t num_latents, int64_t size, const Draw& draw,
                                      int64_t* out) {
  if (size <= 0) return;
  const UniformKeys keys{random_row(draw, 0)};
  const Threshold threshold = find_threshold(keys, num_latents, static_cast<int>(size));
  visit_in_order(keys, num_latents, threshold, [out](int64_t n, bool chosen, int index) {
    if (chosen) out[index] = n;
  });
}

}  // namespace mam::cuda
