// Threads that help the one that calls. Not OpenMP's, whose regions end only when every thread has arrived, those too that found no core
// free: on a machine that other programs keep busy, such as the workers of a data loader, a call of 50 us then takes as long as the system
// lets a thread wait, many milliseconds. Here the caller works on its items whether or not somebody helps, and waits for those alone that a
// helper has begun.

#include "cpu/workers.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mam {
namespace cpu {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// A job under way. It lives on its caller's stack: helpers enter and leave under the pool's eyes.
class Run {
 public:
  Run(const Job& job, int seats) : job_(job), seats_(seats) {}

  void work(int thread) {
    for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < job_.items;) {
      try {
        job_.body(job_.context, item, thread);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        next_.store(job_.items, std::memory_order_relaxed);
      }
    }
  }

  // The number of the thread that enters, or 0 if there is nothing left for one. Called under the pool's lock.
  int enter() {
    if (seats_ == taken_ || next_.load(std::memory_order_relaxed) >= job_.items) return 0;
    inside_.fetch_add(1, std::memory_order_relaxed);
    return ++taken_;
  }

  void leave() { inside_.fetch_sub(1, std::memory_order_release); }

  void wait() const {
    for (int looks = 0; inside_.load(std::memory_order_acquire) > 0; ++looks) looks < 1000 ? pause() : std::this_thread::yield();
  }

  void pass_on() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const Job& job_;
  const int seats_;
  int taken_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> inside_{0};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

class Pool {
 public:
  // Takes what is left of a job; false where another caller has the helpers.
  bool run(const Job& job, int threads) {
    const std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
    if (!alone) return false;
    hire(threads - 1);
    Run run(job, threads - 1);
    int asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      current_ = &run;
      ++posted_;
      asleep = asleep_;
    }
    for (int i = 0; i < asleep && i < threads - 1; ++i) wake_.notify_one();
    run.work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      current_ = nullptr;
    }
    run.wait();
    run.pass_on();
    return true;
  }

 private:
  void hire(int helpers) {
    try {
      for (; hired_ < helpers; ++hired_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {  // the system gives no more threads: those that are there do
    }
  }

  [[noreturn]] void help() {
    for (uint64_t seen = 0;;) {
      seen = await(seen);
      Run* run;
      int thread;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        run = current_;
        thread = run ? run->enter() : 0;
      }
      if (!thread) continue;
      run->work(thread);
      run->leave();
    }
  }

  // Returns the number of jobs posted so far, once it is more than `seen`. It sleeps at once: a helper that spins for more work takes a
  // core from torch's own threads, whose operations surround these.
  uint64_t await(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    wake_.wait(lock, [&] { return posted_ != seen; });
    --asleep_;
    return posted_;
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_;
  uint64_t posted_ = 0;
  Run* current_ = nullptr;
  int hired_ = 0, asleep_ = 0;
};

// Never destroyed: its threads may outlive every destructor. A forked process has none of them, and starts anew.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found) return *found;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr, std::memory_order_release); });
  (void)registered;
#endif
  Pool* const made = new Pool;
  if (the_pool.compare_exchange_strong(found, made)) return *made;
  delete made;  // another thread was first; nothing has been hired yet
  return *found;
}

}  // namespace

void run_job(const Job& job, int threads) {
  if (threads > 1 && job.items > 1 && pool().run(job, threads)) return;
  for (int64_t item = 0; item < job.items; ++item) job.body(job.context, item, 0);
}

}  // namespace cpu
}  // namespace mam
