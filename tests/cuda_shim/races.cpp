// A race detector over the fibers of the shim.
//
// With MAM_SHIM_RACES=1 the kernels are compiled with -fsanitize=thread, which calls __tsan_read4
// and its like at every access of memory. Here those calls are answered: not by the runtime of
// ThreadSanitizer, which knows host threads, but by the rules of CUDA. Two accesses of a byte by
// different threads, one of them a write, must be ordered
//   - by __syncthreads, within a block;
//   - by __syncwarp, between the lanes that it names; shuffles and votes order nothing;
//   - by an atomic of each block on one address, after a fence, between blocks;
// or both be atomic. An order that merely happens, of warps or of blocks, is a race: it is found in
// whichever order the fibers run.
//
// Time within a block is (epoch, step): a barrier of the block begins an epoch, and a barrier of a
// warp moves its lanes a step on. A lane knows up to which step it has met each other lane.
#include "races.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace mam_shim {
namespace races {
namespace {

constexpr unsigned kLanes = 32, kNobody = ~0u;
constexpr size_t kPage = 256;

// What is known of one byte.
struct Cell {
  unsigned block = kNobody;  // whose accesses these are
  unsigned writer = kNobody, write_epoch = 0, write_step = 0;
  bool write_atomic = false;
  unsigned read_epoch = 0, read_warps = 0, read_lanes = 0, read_step = 0;  // lanes: of read_warp
  unsigned read_warp = kNobody;
  bool read_atomic = true;          // whether all of those were
  unsigned other_writer = kNobody;  // the last block before this one that wrote or read it
  bool other_atomic = true;
  unsigned other_reader = kNobody;
};

struct State {
  std::unordered_map<uintptr_t, std::unique_ptr<std::array<Cell, kPage>>> pages;
  std::unordered_map<uintptr_t, std::unordered_set<unsigned>> released;  // by atomics
  std::unordered_set<unsigned> acquired;          // blocks whose accesses came before this one's
  std::vector<std::array<unsigned, kLanes>> met;  // by thread: steps of the lanes of its warp
  unsigned threads = 0, block = 0, epoch = 1;
  uintptr_t stack = 0, stack_end = 0, shared = 0, shared_end = 0;
  bool fenced = false;
  std::string found;
};

State state;
// By itself, because memory is read before the constructor of the above has run.
unsigned current = kNobody;  // thread

// The writable segments of this module, where shared memory lies as static variables.
struct Segments {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
};

int add_segments(dl_phdr_info* info, size_t, void* data) {
  auto& segments = *static_cast<Segments*>(data);
  const auto here = reinterpret_cast<uintptr_t>(&state);
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  bool mine = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || !(header.p_flags & PF_W)) continue;
    const uintptr_t first = info->dlpi_addr + header.p_vaddr, last = first + header.p_memsz;
    ranges.push_back({first, last});
    mine = mine || (first <= here && here < last);
  }
  if (mine) segments.ranges = ranges;
  return mine;
}

bool is_shared(uintptr_t address) {
  static const Segments segments = [] {
    Segments found;
    dl_iterate_phdr(add_segments, &found);
    return found;
  }();
  if (state.shared <= address && address < state.shared_end) return true;
  for (const auto& [first, last] : segments.ranges)
    if (first <= address && address < last) return true;
  return false;
}

Cell& cell_of(uintptr_t address) {
  auto& page = state.pages[address / kPage];
  if (page == nullptr) page = std::make_unique<std::array<Cell, kPage>>();
  return (*page)[address % kPage];
}

std::string in_block(unsigned thread) { return "thread " + std::to_string(thread); }

void report(uintptr_t address, const char* what, const std::string& other) {
  if (!state.found.empty()) return;
  state.found = "block " + std::to_string(state.block) + ": " + in_block(current) + what +
                (is_shared(address) ? " shared" : " global") + " memory that " + other +
                " without a barrier between";
}

// Whether the access of another thread of this block, at a time, came before the current one.
bool ordered(unsigned thread, unsigned epoch, unsigned step) {
  if (epoch < state.epoch || thread == current) return true;
  if (thread / kLanes != current / kLanes) return false;
  return state.met[current][thread % kLanes] > step;
}

bool came_before(unsigned block) { return state.acquired.count(block) > 0; }

void enter_block(Cell& cell, uintptr_t address) {
  if (cell.block == state.block) return;
  if (cell.block != kNobody && !is_shared(address)) {
    if (cell.writer != kNobody) {
      cell.other_writer = cell.block;
      cell.other_atomic = cell.write_atomic;
    }
    if (cell.read_warps != 0) cell.other_reader = cell.block;
  }
  const unsigned writer = cell.other_writer, reader = cell.other_reader;
  const bool atomic = cell.other_atomic, shared = is_shared(address);
  cell = Cell{};
  cell.block = state.block;
  if (shared) return;
  cell.other_writer = writer;
  cell.other_reader = reader;
  cell.other_atomic = atomic;
}

void touch(uintptr_t address, bool write, bool atomic) {
  Cell& cell = cell_of(address);
  enter_block(cell, address);
  const unsigned warp = current / kLanes;
  const char* what = write ? " writes" : " reads";
  if (cell.other_writer != kNobody && !(atomic && cell.other_atomic) &&
      !came_before(cell.other_writer))
    report(address, what, "block " + std::to_string(cell.other_writer) + " wrote");
  if (write && cell.other_reader != kNobody && !came_before(cell.other_reader) && !atomic)
    report(address, what, "block " + std::to_string(cell.other_reader) + " read");
  if (cell.writer != kNobody && !(atomic && cell.write_atomic) &&
      !ordered(cell.writer, cell.write_epoch, cell.write_step))
    report(address, what, in_block(cell.writer) + " wrote");
  const unsigned step = state.met[current][current % kLanes];
  if (write) {
    const bool now = cell.read_epoch == state.epoch && !(atomic && cell.read_atomic);
    if (now && (cell.read_warps & ~(1u << warp % kLanes)) != 0)
      report(address, what, "another warp read");
    if (now && cell.read_warp == warp) {
      for (unsigned lane = 0; lane < kLanes; ++lane) {
        if (!(cell.read_lanes >> lane & 1u)) continue;
        if (!ordered(warp * kLanes + lane, cell.read_epoch, cell.read_step))
          report(address, what, in_block(warp * kLanes + lane) + " read");
      }
    }
    cell.writer = current;
    cell.write_epoch = state.epoch;
    cell.write_step = step;
    cell.write_atomic = atomic;
    return;
  }
  if (cell.read_epoch != state.epoch) {
    cell.read_epoch = state.epoch;
    cell.read_warps = cell.read_lanes = cell.read_step = 0;
    cell.read_atomic = true;
  }
  if (cell.read_warp != warp || cell.read_step != step) cell.read_lanes = 0;
  cell.read_warp = warp;
  cell.read_warps |= 1u << warp % kLanes;
  cell.read_lanes |= 1u << current % kLanes;
  cell.read_step = step;
  cell.read_atomic = cell.read_atomic && atomic;
}

void access(const void* where, size_t bytes, bool write, bool atomic) {
  const auto address = reinterpret_cast<uintptr_t>(where);
  if (current == kNobody || (state.stack <= address && address < state.stack_end)) return;
  for (size_t i = 0; i < bytes; ++i) touch(address + i, write, atomic);
}

}  // namespace

void begin_grid(unsigned threads) {
  state.pages.clear();
  state.released.clear();
  state.found.clear();
  state.threads = threads;
}

void begin_block(unsigned block, const void* shared, size_t bytes) {
  state.block = block;
  state.epoch = 1;
  state.acquired.clear();
  state.fenced = false;
  state.shared = reinterpret_cast<uintptr_t>(shared);
  state.shared_end = state.shared + bytes;
  std::array<unsigned, kLanes> steps;
  steps.fill(0);
  state.met.assign((state.threads + kLanes - 1) / kLanes * kLanes, steps);
  for (unsigned thread = 0; thread < state.met.size(); ++thread)
    state.met[thread][thread % kLanes] = 1;
}

void enter(unsigned thread, const void* stack, size_t bytes) {
  state.stack = reinterpret_cast<uintptr_t>(stack);
  state.stack_end = state.stack + bytes;
  current = thread;
}

void leave() { current = kNobody; }

void barrier() { ++state.epoch; }

void warp_barrier(unsigned warp, unsigned mask) {
  std::array<unsigned, kLanes> latest;
  latest.fill(0);
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1u) || warp * kLanes + lane >= state.threads) continue;
    const auto& met = state.met[warp * kLanes + lane];
    for (unsigned i = 0; i < kLanes; ++i) latest[i] = std::max(latest[i], met[i]);
  }
  // What a lane did at its step is known to the others from its next step on.
  for (unsigned lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1u) ++latest[lane];
  for (unsigned lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1u) state.met[warp * kLanes + lane] = latest;
}

void atomic(const void* address, size_t bytes) {
  access(address, bytes, false, true);
  access(address, bytes, true, true);
  if (is_shared(reinterpret_cast<uintptr_t>(address))) return;
  auto& blocks = state.released[reinterpret_cast<uintptr_t>(address)];
  state.acquired.insert(blocks.begin(), blocks.end());
  if (state.fenced) blocks.insert(state.block);
}

void fence() { state.fenced = true; }

const std::string& found() { return state.found; }

void end_grid() { state.pages.clear(); }

}  // namespace races
}  // namespace mam_shim

// What -fsanitize=thread calls.
using mam_shim::races::access;
#define MAM_TSAN_SIZE(bytes)                                                               \
  extern "C" void __tsan_read##bytes(void* p) { access(p, bytes, false, false); }          \
  extern "C" void __tsan_write##bytes(void* p) { access(p, bytes, true, false); }          \
  extern "C" void __tsan_volatile_read##bytes(void* p) { access(p, bytes, false, false); } \
  extern "C" void __tsan_volatile_write##bytes(void* p) { access(p, bytes, true, false); }
#define MAM_TSAN_UNALIGNED(bytes)                                                           \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false, false); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true, false); }
MAM_TSAN_SIZE(1)
MAM_TSAN_SIZE(2)
MAM_TSAN_SIZE(4)
MAM_TSAN_SIZE(8)
MAM_TSAN_SIZE(16)
MAM_TSAN_UNALIGNED(2)
MAM_TSAN_UNALIGNED(4)
MAM_TSAN_UNALIGNED(8)
MAM_TSAN_UNALIGNED(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, false); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, false); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
