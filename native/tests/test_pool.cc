// The thread pool: every task runs once, from several host threads, within a task, after fork(); it sleeps and wakes.
// Meant for the thread sanitizer, too.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "harness.h"
#include "hybridkit_kernels.h"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

// A job whose tasks count how often each was run.
struct Job {
  explicit Job(size_t count) : seen(count) {}
  bool runs_each_once(const hybridkit_parallel* pool) {
    pool->run(
        pool->pool, [](void* state, size_t i) { static_cast<Job*>(state)->seen[i]++; }, this, seen.size());
    bool once = true;
    for (int& count : seen) {
      once = once && count == 1;
      count = 0;
    }
    return once;
  }
  std::vector<int> seen;  // not atomic: run() itself has to order the tasks before its return
};

TEST(pool_runs_every_task_once) {
  for (const int threads : {-1, 0, 1, 2, 3, 8}) {
    const hybridkit_parallel* pool = hybridkit_thread_pool(threads);
    CHECK(pool == hybridkit_thread_pool(threads), "a pool is made once");
    for (const size_t count : {0, 1, 2, 3, 17, 1000}) {
      CHECK(Job(count).runs_each_once(pool), "%d threads, %zu tasks", threads, count);
    }
  }
}

TEST(pool_workers_sleep_and_wake) {
  Job job(64);
  for (int i = 0; i < 20; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(i % 3));
    CHECK(job.runs_each_once(hybridkit_thread_pool(3)), "job %d", i);
  }
}

TEST(pool_callers_sleep_and_wake) {  // the last task of a job outlasts the caller's patience
  struct Late {
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> done{0};
  } late;
  const auto task = [](void* state, size_t) {
    auto& late = *static_cast<Late*>(state);
    if (std::this_thread::get_id() != late.caller) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    late.done++;
  };
  const hybridkit_parallel* pool = hybridkit_thread_pool(2);
  for (int i = 0; i < 20; i++) pool->run(pool->pool, task, &late, 3);
  CHECK(late.done == 60, "%d of 60 late tasks ran", late.done.load());
}

TEST(pool_serves_several_hosts) {
  std::atomic<int> failures{0};
  std::vector<std::thread> hosts;
  for (int h = 0; h < 4; h++) {
    hosts.emplace_back([h, &failures] {
      Job job(5 + h);
      for (int i = 0; i < 500; i++) failures += !job.runs_each_once(hybridkit_thread_pool(2 + (i + h) % 3));
    });
  }
  for (std::thread& host : hosts) host.join();
  CHECK(failures == 0, "%d jobs", failures.load());
}

TEST(pool_serves_its_own_tasks) {
  std::atomic<int> failures{0};
  const hybridkit_parallel* pool = hybridkit_thread_pool(2);
  pool->run(
      pool->pool,
      [](void* state, size_t) {
        *static_cast<std::atomic<int>*>(state) += !Job(9).runs_each_once(hybridkit_thread_pool(2));
      },
      &failures, 4);
  CHECK(failures == 0, "%d jobs", failures.load());
}

#if !defined(_WIN32)
TEST(pool_survives_a_fork) {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    Job job(6);
    while (!stop) job.runs_each_once(hybridkit_thread_pool(2));
  });
  for (int i = 0; i < 10; i++) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      const bool good =
          Job(100).runs_each_once(hybridkit_thread_pool(2)) && Job(100).runs_each_once(hybridkit_thread_pool(7));
      _exit(good ? 0 : 1);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "the child's status is %d", status);
  }
  stop = true;
  other.join();
}
#endif

}  // namespace
