// Finds reads and writes of shared and global memory that no barrier orders, over the fibers of the
// shim. See races.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mam_shim {
namespace races {

// The scheduler says what happens; memory accesses come from the instrumented kernels.
void begin_grid(unsigned threads);
void begin_block(unsigned block, const void* shared, size_t bytes);
void enter(unsigned thread, const void* stack, size_t bytes);  // a thread goes on
void leave();
void barrier();                                   // every thread of the block has met it
void warp_barrier(unsigned warp, unsigned mask);  // __syncwarp of these lanes
void atomic(const void* address, size_t bytes);
void fence();

// What was found first; empty if nothing.
const std::string& found();
void end_grid();

}  // namespace races
}  // namespace mam_shim
