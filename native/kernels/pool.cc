// A thread pool for hosts that have none of their own: the caller and threads - 1 workers take task numbers from one
// counter. Workers that find nothing to do watch the counter for a moment, since the next product of a network
// follows soon, and then sleep.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "hybridkit_kernels.h"

namespace {

using Task = void (*)(void* state, size_t index);

constexpr int kMaxThreads = 1024;
constexpr auto kWatch = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Watches for a moment: true as soon as `ready()` is. Not at all where threads share a core. Who else wants this
// core gets it, as that may be the thread which is waited for.
template <class Ready>
bool watch(bool patient, Ready ready) {
  if (ready()) return true;
  if (!patient) return false;
  const auto end = std::chrono::steady_clock::now() + kWatch;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      relax();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// The workers of a pool and the one job they share. The atomics are sequentially consistent where a thread that
// falls asleep and the one that has to wake it look at each other's variable after writing their own.
class Crew {
 public:
  Crew(int threads, unsigned process) : process(process), patient_(threads <= cores()) {
    try {
      workers_.reserve(threads - 1);
      while (static_cast<int>(workers_.size()) < threads - 1) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {  // the system gives no more threads: fewer do the same work
    } catch (const std::bad_alloc&) {
    }
  }

  // False if another thread's job is under way.
  bool run(Task task, void* state, size_t count) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    task_ = task;
    state_ = state;
    unfinished_.store(count, std::memory_order_relaxed);
    untaken_.store(count);  // from here on workers join in
    wake(count - 1);
    drain();
    if (!watch(patient_, [this] { return unfinished_.load() == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_.store(true);
      finished_.wait(lock, [this] { return unfinished_.load() == 0; });
      caller_sleeps_.store(false);
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

  // Ends the workers once there is nothing left to take.
  void close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_.store(true);
    }
    work_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  const unsigned process;    // which process, counted in forks, the workers live in
  Crew* before = nullptr;    // what a fork left without workers; kept because nothing may be destroyed there

 private:
  static int cores() { return static_cast<int>(std::thread::hardware_concurrency()); }

  void work() {
    for (;;) {
      drain();
      const auto ready = [this] { return untaken_.load() != 0 || closed_.load(); };
      if (!watch(patient_, ready)) {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1);
        work_.wait(lock, ready);
        asleep_.fetch_sub(1);
      }
      if (untaken_.load() == 0 && closed_.load()) return;
    }
  }

  // Takes and runs tasks until none is left. Whoever has taken one may read the job: it stays until all that was
  // taken is reported as finished.
  void drain() {
    size_t done = 0;
    size_t left = untaken_.load();
    while (left != 0) {
      if (!untaken_.compare_exchange_weak(left, left - 1)) continue;
      task_(state_, left - 1);
      done++;
      left = untaken_.load();
    }
    if (done == 0 || unfinished_.fetch_sub(done) != done || !caller_sleeps_.load()) return;
    { std::lock_guard<std::mutex> lock(mutex_); }  // the caller is in wait() now, not on its way there
    finished_.notify_one();
  }

  void wake(size_t wanted) {
    const size_t asleep = asleep_.load();
    if (asleep == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    if (wanted >= asleep) return work_.notify_all();
    for (; wanted != 0; wanted--) work_.notify_one();
  }

  const bool patient_;
  Task task_ = nullptr;
  void* state_ = nullptr;
  alignas(64) std::atomic<size_t> untaken_{0};
  alignas(64) std::atomic<size_t> unfinished_{0};
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<bool> closed_{false}, caller_sleeps_{false};
  std::atomic<size_t> asleep_{0};
  std::mutex mutex_;
  std::condition_variable work_, finished_;
  std::vector<std::thread> workers_;  // last: they start when everything else is there
};

void run_here(void*, Task task, void* state, size_t count) {
  for (size_t i = 0; i < count; i++) task(state, i);
}

struct Pool {
  int threads;
  hybridkit_parallel interface;
  std::atomic<Crew*> crew{nullptr};
};

// Every pool of the process. Never destroyed, as threads may be using pools until the process ends.
class Registry {
 public:
  Registry() {
#if !defined(_WIN32)
    pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); },
                   [] {
                     get().process_.fetch_add(1);
                     get().mutex_.unlock();
                   });
#endif
  }

  static Registry& get() {
    static Registry* registry = new Registry;
    return *registry;
  }

  Pool* pool(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Pool* pool : pools_)
      if (pool->threads == threads) return pool;
    Pool* pool = new Pool{threads, {}};
    pool->interface = {&run_in_pool, pool};
    pools_.push_back(pool);
    return pool;
  }

  void close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    for (Pool* pool : pools_) {
      Crew* crew = pool->crew.load();
      if (crew != nullptr && crew->process == process_.load()) crew->close();
    }
  }

 private:
  static void run_in_pool(void* pool, Task task, void* state, size_t count) {
    if (count > 1) {
      Crew* crew = get().crew(*static_cast<Pool*>(pool));
      if (crew != nullptr && crew->run(task, state, count)) return;
    }
    run_here(nullptr, task, state, count);
  }

  // The workers of `pool` in this process, started on first use; null when there are to be none.
  Crew* crew(Pool& pool) {
    Crew* crew = pool.crew.load(std::memory_order_acquire);
    if (crew != nullptr && crew->process == process_.load(std::memory_order_relaxed)) return crew;
    std::lock_guard<std::mutex> lock(mutex_);
    crew = pool.crew.load();
    if (crew != nullptr && crew->process == process_.load()) return crew;
    if (closed_) return nullptr;
    Crew* fresh = new (std::nothrow) Crew(pool.threads, process_.load());
    if (fresh == nullptr) return nullptr;
    fresh->before = crew;
    pool.crew.store(fresh, std::memory_order_release);
    return fresh;
  }

  std::mutex mutex_;  // held across fork(), so that the child finds everything below in order
  std::atomic<unsigned> process_{0};
  bool closed_ = false;
  std::vector<Pool*> pools_;
};

// Workers must be gone before the library's code is.
struct Lifetime {
  Lifetime() { Registry::get(); }
  ~Lifetime() { Registry::get().close(); }
} lifetime;

}  // namespace

extern "C" const hybridkit_parallel* hybridkit_thread_pool(int threads) {
  static const hybridkit_parallel alone = {&run_here, nullptr};
  if (threads <= 1) return &alone;
  try {
    return &Registry::get().pool(threads < kMaxThreads ? threads : kMaxThreads)->interface;
  } catch (const std::bad_alloc&) {
    return &alone;
  }
}
