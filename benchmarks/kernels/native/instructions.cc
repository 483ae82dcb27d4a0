// Counts the instructions of a product: the kernel is run by single steps, which the processor counts exactly whatever
// else the machine does.
//
//   instructions LIBRARY ISA CODEC ACTIVATIONS N K M GROUP [REPEATS]
//
// prints how many hybridkit_matmul executes. With REPEATS it only computes, so often, for an emulator that counts by
// itself. GROUP: columns that share a scale, of n-bit codes; else 0.
#include <dlfcn.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__)
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "hybridkit_kernels.h"

namespace {

template <class Function>
Function* find(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  return reinterpret_cast<Function*>(found);
}

void check(const char* wrong) {
  if (wrong == nullptr) return;
  std::fprintf(stderr, "%s\n", wrong);
  std::exit(1);
}

// A product of codes that are all 0 in digits: which they are does not matter to the kernels.
struct Product {
  decltype(hybridkit_matmul)* matmul;
  std::vector<uint8_t> codes, scales;
  std::vector<float> scale, bias, x, y;
  hybridkit_matrix matrix;
  int64_t M;

  explicit Product(char** words) {
    void* library = dlopen(words[0], RTLD_NOW);
    if (library == nullptr) check(dlerror());
    check(find<decltype(hybridkit_set_isa)>(library, "hybridkit_set_isa")(words[1]));
    matmul = find<decltype(hybridkit_matmul)>(library, "hybridkit_matmul");
    const int32_t codec = std::atoi(words[2]), activations = std::atoi(words[3]);
    const int64_t N = std::atoll(words[4]), K = std::atoll(words[5]), group = std::atoll(words[7]);
    M = std::atoll(words[6]);
    codes.resize(find<decltype(hybridkit_code_bytes)>(library, "hybridkit_code_bytes")(codec, 1, N, K));
    if (group != 0) scales.resize(find<decltype(hybridkit_scale_bytes)>(library, "hybridkit_scale_bytes")(HYBRIDKIT_F32, N, K, group));
    scale.assign(N, 0.01f);
    bias.assign(N, 0.0f);
    x.assign(M * K, 1.0f);
    y.resize(M * N);
    matrix = {codec, activations, N, K, codes.data(), group == 0 ? scale.data() : nullptr, bias.data(), codes.size(),
              group, group == 0 ? nullptr : scales.data(), HYBRIDKIT_F32};
  }
  void run() { check(matmul(&matrix, HYBRIDKIT_F32, x.data(), M, y.data(), nullptr)); }
};

#if defined(__x86_64__)
// Steps of a child up to its next signal, with those that raise it.
long steps_of(pid_t child) {
  int status = 0;
  for (long steps = 0;; ++steps) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
      std::fprintf(stderr, "the product cannot be run by single steps\n");
      std::exit(1);
    }
    if (WSTOPSIG(status) == SIGUSR1) return steps;
  }
}

long counted(Product& product) {
  cpu_set_t here;  // both processes on one core: waking another takes most of the time of a step
  CPU_ZERO(&here);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &here);
  sched_setaffinity(0, sizeof here, &here);
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    product.run();  // once before: memory is allocated, symbols are found
    std::raise(SIGUSR1);
    std::raise(SIGUSR1);
    product.run();
    std::raise(SIGUSR1);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);  // at the first signal
  const long empty = steps_of(child);  // what raising a signal takes
  const long both = steps_of(child);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return both - empty;
}
#endif

}  // namespace

int main(int count, char** words) {
  if (count < 9) return 2;
  Product product(words + 1);
  if (count > 9) {
    for (int i = std::atoi(words[9]); i > 0; --i) product.run();
    return 0;
  }
#if defined(__x86_64__)
  std::printf("%ld\n", counted(product));
  return 0;
#else
  return 2;
#endif
}
