// Threads and their memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mam {
namespace cpu {

// Uninitialised memory on cache lines, so that no vector straddles two of them.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) { reset(size); }

  void reset(int64_t size) {
    constexpr size_t kLine = 64;
    const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + kLine - 1) / kLine * kLine;
    memory_.reset(bytes ? static_cast<T*>(std::aligned_alloc(kLine, bytes)) : nullptr);
    if (bytes && !memory_) throw std::bad_alloc();
  }

  T* get() const { return memory_.get(); }
  T& operator[](int64_t i) const { return memory_.get()[i]; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

// body(item, thread) for every item in [0, items), on up to `threads` threads; which thread takes an item changes nothing but its scratch
// memory. The first exception is passed on.
template <typename Body>
void parallel_for(int64_t items, int threads, const Body& body) {
  if (threads <= 1 || items <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
#ifdef _OPENMP
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t item = 0; item < items; ++item) {
    try {
      if (!failed.load(std::memory_order_relaxed)) body(item, omp_get_thread_num());
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
#else
  for (int64_t item = 0; item < items; ++item) body(item, 0);
#endif
}

// How many threads are worth starting.
inline int threads_for(int64_t items, int allowed) {
#ifdef _OPENMP
  return static_cast<int>(items < allowed ? (items > 0 ? items : 1) : (allowed > 0 ? allowed : 1));
#else
  (void)items, (void)allowed;
  return 1;
#endif
}

}  // namespace cpu
}  // namespace mam
