// Streams of the random bits, the last word of Philox's counter: one for each thing that is drawn.
#pragma once

#include <cstdint>

namespace mam {

constexpr uint32_t kStreamPositions = 0, kStreamLatents = 1;

}  // namespace mam
