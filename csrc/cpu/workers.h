// Threads and their memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

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

// The work of one call: items that any thread may take, in any order.
struct Job {
  int64_t items;
  void (*body)(const void* context, int64_t item, int thread);
  const void* context;
};

// Takes every item, on the calling thread and up to `threads` - 1 others. An exception of the
// body's is passed on, the first one.
void run_job(const Job& job, int threads);

// body(item, thread) for every item in [0, items); which of the `threads` takes an item changes
// nothing but its scratch memory.
template <typename Body>
void parallel_for(int64_t items, int threads, const Body& body) {
  run_job({items,
           [](const void* context, int64_t item, int thread) {
             (*static_cast<const Body*>(context))(item, thread);
           },
           &body},
          threads);
}

// While a session exists, the helpers of its thread stay awake between jobs, so that sharing a job
// costs less than a microsecond; waking them takes 10 to 100. For calls that consist of several
// jobs in a row. Where another thread has the helpers, a session does nothing.
class Session {
 public:
  explicit Session(int threads);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  bool opened_;
};

// How many threads there is work for.
inline int threads_for(int64_t items, int allowed) {
  return static_cast<int>(items < allowed ? (items > 0 ? items : 1) : (allowed > 0 ? allowed : 1));
}

}  // namespace cpu
}  // namespace mam
