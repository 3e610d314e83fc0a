// The memory of a masking step: the state, which step.cu writes and step_backward.cu reads, and the
// pieces of their scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mam::cuda {

// The parts of the state, one after the other in one piece of memory.
struct State {
  float *mean, *variance, *occupied, *average, *directions, *constant, *folded, *units, *second,
      *gram, *end;

  State(float* memory, int64_t rows, int64_t latents, int64_t heads, int64_t width) {
    const auto take = [&memory](int64_t size) {
      float* const part = memory;
      memory += size;
      return part;
    };
    mean = take(rows * latents * heads);
    variance = take(rows * latents * heads);
    occupied = take(rows);
    average = take(rows * heads);
    directions = take(heads * width);
    constant = take(width);
    folded = take(heads * width);
    units = take(3 * width);
    second = take(heads * heads);
    gram = take(heads * heads);
    end = memory;
  }
};

// Pieces of memory for a launch, each aligned to 16 bytes.
struct Pieces {
  char* next;
  size_t bytes = 0;

  template <typename T>
  T* take(int64_t count) {
    const size_t size = (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    T* const piece = reinterpret_cast<T*>(next + bytes);
    bytes += size;
    return piece;
  }
};

}  // namespace mam::cuda
