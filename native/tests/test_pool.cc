// The thread pool: every task runs once, from several host threads, after fork(), and it sleeps and wakes.
// Meant for the thread, address and undefined-behaviour sanitizers too. Exits with 1 and a line on the first failure.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "hybridkit_kernels.h"

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::printf("failed: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

// A job whose tasks count how often each was run.
struct Job {
  explicit Job(size_t count) : seen(count) {}
  void run(const hybridkit_parallel* pool) {
    pool->run(
        pool->pool, [](void* state, size_t i) { static_cast<Job*>(state)->seen[i]++; }, this, seen.size());
    for (int& count : seen) {
      require(count == 1, "a task ran exactly once");
      count = 0;
    }
  }
  std::vector<int> seen;  // not atomic: run() itself has to order the tasks before its return
};

void every_task_runs_once() {
  for (int threads : {-1, 0, 1, 2, 3, 8}) {
    const hybridkit_parallel* pool = hybridkit_thread_pool(threads);
    require(pool == hybridkit_thread_pool(threads), "a pool is made once");
    for (size_t count : {0, 1, 2, 3, 17, 1000}) Job(count).run(pool);
  }
}

void sleeping_workers_wake() {
  Job job(64);
  for (int i = 0; i < 20; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(i % 3));
    job.run(hybridkit_thread_pool(3));
  }
}

// The last task of a job outlasts the caller's patience.
void callers_sleep_and_wake() {
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
  require(late.done == 60, "all late tasks ran");
}

void many_host_threads() {
  std::vector<std::thread> hosts;
  for (int h = 0; h < 4; h++)
    hosts.emplace_back([h] {
      Job job(5 + h);
      for (int i = 0; i < 500; i++) job.run(hybridkit_thread_pool(2 + (i + h) % 3));
    });
  for (std::thread& host : hosts) host.join();
}

void a_task_may_use_the_pool() {
  const hybridkit_parallel* pool = hybridkit_thread_pool(2);
  pool->run(pool->pool, [](void*, size_t) { Job(9).run(hybridkit_thread_pool(2)); }, nullptr, 4);
}

void children_have_workers() {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    Job job(6);
    while (!stop) job.run(hybridkit_thread_pool(2));
  });
  for (int i = 0; i < 10; i++) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      Job(100).run(hybridkit_thread_pool(2));
      Job(100).run(hybridkit_thread_pool(7));
      std::_Exit(0);
    }
    int status = 1;
    require(waitpid(child, &status, 0) == child && status == 0, "a forked child runs tasks");
  }
  stop = true;
  other.join();
}

}  // namespace

int main() {
  every_task_runs_once();
  sleeping_workers_wake();
  callers_sleep_and_wake();
  many_host_threads();
  a_task_may_use_the_pool();
  children_have_workers();
}
