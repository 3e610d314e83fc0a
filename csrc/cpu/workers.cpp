// Threads that help the one that calls. OpenMP's regions end only when every thread has arrived,
// and one that finds no core free arrives late: on a machine that other programs keep busy, such as
// the workers of a data loader, a call of 50 us then takes many milliseconds. Here the caller works
// on its items whether or not somebody helps, and waits only for those that a helper has begun.
// Affinity and priority of the helpers are left to the system.

#include "cpu/workers.h"

#include <atomic>
#include <cfenv>
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

// A job under way. It lives on its caller's stack. Helpers enter it under the pool's lock, and the
// caller waits until they have left.
class Run {
 public:
  Run(const Job& job, int seats) : job_(job), seats_(seats) {}

  void work(int thread) {
    for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < job_.items;) {
      try {
        job_.body(job_.context, item, thread);
      } catch (...) {
        // Of several failures the first item's is reported, whichever thread was faster: items are
        // started in their order, so those before this one have been.
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_ || item < failed_) {
          failure_ = std::current_exception();
          failed_ = item;
        }
        next_.store(job_.items, std::memory_order_relaxed);
      }
    }
  }

  // The number of the thread that enters, or 0 if there is nothing left for one. Called under the
  // pool's lock.
  int enter() {
    if (seats_ == taken_ || next_.load(std::memory_order_relaxed) >= job_.items) return 0;
    inside_.fetch_add(1, std::memory_order_relaxed);
    return ++taken_;
  }

  void leave() { inside_.fetch_sub(1, std::memory_order_release); }

  void wait() const {
    for (int looks = 0; inside_.load(std::memory_order_acquire) > 0; ++looks)
      looks < 1000 ? pause() : std::this_thread::yield();
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
  int64_t failed_ = 0;  // the item of failure_
};

// Whether this thread has a session, which has the pool to itself.
thread_local bool in_session = false;

class Pool {
 public:
  // Takes what is left of a job; false where another caller has the helpers.
  bool run(const Job& job, int threads) {
    if (in_session) {
      share(job, threads);
      return true;
    }
    const std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
    if (!alone) return false;
    hire(threads - 1);
    share(job, threads);
    return true;
  }

  // Wakes the helpers, and keeps them from others; false where another caller has them.
  bool open(int threads) {
    if (!in_use_.try_lock()) return false;
    hire(threads - 1);
    attending_.store(true, std::memory_order_relaxed);
    post(nullptr, threads - 1);
    return true;
  }

  void close() {
    attending_.store(false, std::memory_order_relaxed);
    in_use_.unlock();
  }

 private:
  void hire(int helpers) {
    try {
      for (; hired_ < helpers; ++hired_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
      // the system gives no more threads: those that are there do
    }
  }

  void share(const Job& job, int threads) {
    Run run(job, threads - 1);
    post(&run, threads - 1);
    run.work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      current_ = nullptr;
    }
    run.wait();
    run.pass_on();
  }

  // Wakes helpers, for a job or to wait for the next one.
  void post(Run* run, int helpers) {
    int asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      current_ = run;
      posted_.fetch_add(1, std::memory_order_release);
      asleep = asleep_;
    }
    for (int i = 0; i < asleep && i < helpers; ++i) wake_.notify_one();
  }

  [[noreturn]] void help() {
    std::fesetenv(FE_DFL_ENV);  // a thread begins with the modes of the one that hired it
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

  // Returns the number of calls for helpers so far, once it is more than `seen`. Outside of a
  // session it sleeps at once: a helper that spins for more work takes a core from torch's own
  // threads, whose operations surround these. In a session it never yields its core, for one that
  // spins would keep it for milliseconds.
  uint64_t await(uint64_t seen) {
    constexpr int kLooks = 5000;  // some 0.2 ms
    for (int looks = 0; looks < kLooks && attending_.load(std::memory_order_relaxed); ++looks) {
      const uint64_t posted = posted_.load(std::memory_order_acquire);
      if (posted != seen) return posted;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    wake_.wait(lock, [&] { return posted_.load(std::memory_order_relaxed) != seen; });
    --asleep_;
    return posted_.load(std::memory_order_relaxed);
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> posted_{0};
  std::atomic<bool> attending_{false};
  Run* current_ = nullptr;
  int hired_ = 0, asleep_ = 0;
};

// Never destroyed: its threads may outlive every destructor. A forked process has none of them, and
// starts anew.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found) return *found;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr, std::memory_order_release); });
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

Session::Session(int threads) : opened_(threads > 1 && !in_session && pool().open(threads)) {
  in_session |= opened_;
}

Session::~Session() {
  if (!opened_) return;
  in_session = false;
  pool().close();
}

}  // namespace cpu
}  // namespace mam
