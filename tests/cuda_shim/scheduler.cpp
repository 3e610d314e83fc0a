// Runs a grid of thread blocks on the host; see cuda_runtime.h.
//
// MAM_SHIM_ORDER: the order in which the threads of a block are visited: "forward" (the default),
// "reverse", or a number, the seed of an order that changes from round to round. A kernel that
// lacks a barrier gives different results in different orders.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "races.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

#ifdef __x86_64__
// Saves the registers that a call preserves on the stack, and goes on with another stack.
extern "C" void mam_shim_switch(void** save, void* to);
asm(R"(
.text
.type mam_shim_switch, @function
mam_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mam_shim_switch, .-mam_shim_switch
)");
#endif

namespace mam_shim {
namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kExchangeBytes = 16;
constexpr size_t kSharedWithoutOptIn = 48 * 1024, kSharedAtMost = 227 * 1024;  // of sm_90

enum class State { kRunning, kAtBarrier, kInExchange, kFinished };

#ifdef __x86_64__
struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // the return address of `entry`, which never returns; it aligns the stack as
                       // a call does
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(Context& other) { mam_shim_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void prepare(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  State state = State::kRunning;
  Place place{nullptr, 0};
  unsigned mask = 0;      // of the exchange it waits in
  bool ordering = false;  // whether that orders memory: __syncwarp
  char left[kExchangeBytes];
};

// What the lanes left in the exchange that was completed last. Those that took part read it as soon
// as they go on, which they all do before the next exchange can be complete.
struct Warp {
  char left[kLanes][kExchangeBytes];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> shared;
  size_t allowed_shared = kSharedWithoutOptIn;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  Kernel kernel{};
  unsigned threads = 0, current = 0, barriers = 0;
  std::string error;
};

Block block;
std::mutex one_launch;  // shared memory is static: one grid at a time

std::string describe(unsigned thread) {
  const Fiber& fiber = block.fibers[thread];
  const std::string where =
      fiber.place.file == nullptr
          ? ""
          : std::string(" at ") + fiber.place.file + ":" + std::to_string(fiber.place.line);
  const char* what[] = {" is running", " waits at a barrier", " waits for its warp",
                        " has finished"};
  return "thread " + std::to_string(thread) + what[static_cast<int>(fiber.state)] +
         (fiber.state == State::kFinished ? "" : where);
}

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && std::string(a.file) == b.file;
}

void start_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

void finish_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from,
                   [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
#endif
}

void resume(unsigned thread) {
  Fiber& fiber = block.fibers[thread];
  block.current = thread;
  threadIdx = dim3(thread);
  void* fake_stack = nullptr;
  start_switch(&fake_stack, fiber.stack.get(), kStackBytes);
  races::enter(thread, fiber.stack.get(), kStackBytes);
  block.scheduler.switch_to(fiber.context);
  races::leave();
  finish_switch(fake_stack, nullptr, nullptr);
}

// From the current thread to the scheduler, which comes back when the thread may go on.
void wait_as(State state) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  void* fake_stack = nullptr;
  start_switch(state == State::kFinished ? nullptr : &fake_stack, block.scheduler_stack,
               block.scheduler_stack_bytes);
  fiber.context.switch_to(block.scheduler);
  finish_switch(fake_stack, &block.scheduler_stack, &block.scheduler_stack_bytes);
}

void run_thread() {
  finish_switch(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  block.kernel.run(block.kernel.arguments);
  wait_as(State::kFinished);
  std::abort();
}

// Lets the threads of a warp go on whose exchange is complete.
bool release_warp(unsigned warp) {
  const unsigned first = warp * kLanes, last = std::min(first + kLanes, block.threads);
  bool released = false;
  for (unsigned thread = first; thread < last; ++thread) {
    const Fiber& one = block.fibers[thread];
    if (one.state != State::kInExchange) continue;
    bool complete = true;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(one.mask >> lane & 1u)) continue;
      const bool there =
          first + lane < last && block.fibers[first + lane].state == State::kInExchange;
      complete = complete && there && block.fibers[first + lane].mask == one.mask &&
                 same_place(block.fibers[first + lane].place, one.place);
    }
    if (!complete) continue;
    const unsigned mask = one.mask;
    if (one.ordering) races::warp_barrier(warp, mask);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(mask >> lane & 1u)) continue;
      block.fibers[first + lane].state = State::kRunning;
      std::memcpy(block.warps[warp].left[lane], block.fibers[first + lane].left, kExchangeBytes);
    }
    released = true;
  }
  return released;
}

// Lets the block go on if all its threads wait at the same barrier.
bool release_block() {
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBarrier) return false;
    if (!same_place(fiber.place, block.fibers[0].place)) return false;
  }
  for (Fiber& fiber : block.fibers) fiber.state = State::kRunning;
  ++block.barriers;
  races::barrier();
  return true;
}

bool release() {
  bool released = release_block();
  for (unsigned warp = 0; warp < block.warps.size(); ++warp)
    released = release_warp(warp) || released;
  return released;
}

// The order of the next round over the threads.
struct Order {
  std::vector<unsigned> threads;
  bool shuffles = false;
  std::minstd_rand generator;

  explicit Order(unsigned count) : threads(count) {
    std::iota(threads.begin(), threads.end(), 0u);
    const char* wish = std::getenv("MAM_SHIM_ORDER");
    const std::string order = wish == nullptr ? "forward" : wish;
    if (order == "reverse") std::reverse(threads.begin(), threads.end());
    shuffles = order != "reverse" && order != "forward";
    if (shuffles)
      generator.seed(static_cast<unsigned>(std::strtoul(order.c_str(), nullptr, 10)) + 1u);
  }
  void next() {
    if (shuffles) std::shuffle(threads.begin(), threads.end(), generator);
  }
};

bool all_finished() {
  return std::all_of(block.fibers.begin(), block.fibers.end(),
                     [](const Fiber& fiber) { return fiber.state == State::kFinished; });
}

std::string deadlock() {
  std::string message = "block " + std::to_string(blockIdx.x) + " cannot go on: " + describe(0);
  for (unsigned thread = 1; thread < block.threads; ++thread) {
    const Fiber &one = block.fibers[thread], &first = block.fibers[0];
    const bool alike = one.state == first.state &&
                       (one.state == State::kFinished || same_place(one.place, first.place));
    if (!alike || one.state == State::kInExchange) return message + "; " + describe(thread);
  }
  return message;
}

bool run_block(Order& order) {
  for (Fiber& fiber : block.fibers) {
    if (fiber.stack == nullptr) fiber.stack.reset(new char[kStackBytes]);
    fiber.context.prepare(fiber.stack.get(), run_thread);
    fiber.state = State::kRunning;
    fiber.place = {nullptr, 0};
  }
  block.barriers = 0;
  races::begin_block(blockIdx.x, block.shared.data(), block.shared.size());
  std::fill(block.shared.begin(), block.shared.end(),
            static_cast<char>(0xff));  // NaN: nothing may rest on what a block finds
  while (!all_finished()) {
    order.next();
    for (unsigned thread : order.threads) {
      if (block.fibers[thread].state == State::kRunning) resume(thread);
    }
    if (!release() && !all_finished()) {
      block.error = deadlock();
      return false;
    }
  }
  return true;
}

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, const Kernel& kernel) {
  const std::lock_guard<std::mutex> guard(one_launch);
  const unsigned threads = config.blockDim.x;
  const size_t allowed = std::exchange(block.allowed_shared, kSharedWithoutOptIn);
  if (threads == 0 || threads > 1024 || config.gridDim.x == 0 ||
      config.dynamicSmemBytes > allowed || allowed > kSharedAtMost) {
    block.error = "invalid configuration: " + std::to_string(config.gridDim.x) + " blocks of " +
                  std::to_string(threads) + " threads, " + std::to_string(config.dynamicSmemBytes) +
                  " bytes of dynamic shared memory";
    return cudaErrorInvalidConfiguration;
  }
  block.kernel = kernel;
  block.threads = threads;
  block.fibers.resize(threads);
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.shared.resize(config.dynamicSmemBytes + kExchangeBytes);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  Order order(threads);
  races::begin_grid(threads);
  for (unsigned index = 0; index < config.gridDim.x; ++index) {
    blockIdx = dim3(index);
    if (!run_block(order)) return cudaErrorLaunchFailure;
    if (!races::found().empty()) {
      block.error = races::found();
      return cudaErrorLaunchFailure;
    }
  }
  races::end_grid();
  return cudaSuccess;
}

void* dynamic_shared() {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block.shared.data());
  return reinterpret_cast<void*>((begin + kExchangeBytes - 1) / kExchangeBytes * kExchangeBytes);
}

void allow_dynamic_shared(size_t bytes) {
  block.allowed_shared = std::max(bytes, kSharedWithoutOptIn);
}

extern "C" __attribute__((visibility("default"))) unsigned mam_shim_barriers() {
  return block.barriers;
}

void atomic(const void* address, size_t bytes) { races::atomic(address, bytes); }

void fence() { races::fence(); }

const char* last_error() { return block.error.c_str(); }

void block_barrier(Place place) {
  block.fibers[block.current].place = place;
  wait_as(State::kAtBarrier);
}

void exchange(unsigned mask, const void* value, size_t size, Place place) {
  Fiber& fiber = block.fibers[block.current];
  fiber.place = place;
  fiber.mask = mask;
  fiber.ordering = size == 0;
  if (size > 0) std::memcpy(fiber.left, value, size);
  wait_as(State::kInExchange);
}

const void* from_lane(int lane) { return block.warps[block.current / kLanes].left[lane]; }

int lane() { return static_cast<int>(block.current % kLanes); }

}  // namespace mam_shim
