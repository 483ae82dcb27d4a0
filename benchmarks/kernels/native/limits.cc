// What one machine can do at most: read bandwidth of each level of memory, and peaks of the instructions that
// matrix products are made of. The kernels are judged against these numbers, measured in the same run.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs work(thread) on every thread at once, `passes` times; the least over the passes of the slowest thread's seconds:
// a limit is what the machine can do when nobody disturbs it.
template <typename Work>
double best_seconds(int threads, int passes, Work work) {
  std::vector<double> slowest(passes, 0.0);
  std::vector<std::vector<double>> seconds(threads, std::vector<double>(passes));
  std::atomic<int> arrived{0};
  auto body = [&](int thread) {
    work(thread);  // first touch, caches, clock
    for (int pass = 0; pass < passes; ++pass) {
      arrived.fetch_add(1);
      while (arrived.load() < threads * (pass + 1)) {
      }
      const auto start = Clock::now();
      work(thread);
      seconds[thread][pass] = seconds_since(start);
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  for (auto& other : others) other.join();
  for (int pass = 0; pass < passes; ++pass) {
    for (int thread = 0; thread < threads; ++thread) slowest[pass] = std::max(slowest[pass], seconds[thread][pass]);
  }
  return *std::min_element(slowest.begin(), slowest.end());
}

// How far ahead of itself a stream asks for memory, in bytes: hardware alone is not always the fastest.
constexpr size_t kAhead[] = {0, 1024, 4096};

#if defined(__x86_64__)

__attribute__((target("avx2"))) void read_all(const char* data, size_t bytes, size_t ahead) {
  __m256i sum[8];
  for (auto& part : sum) part = _mm256_setzero_si256();
  for (size_t i = 0; i < bytes; i += 256) {
    if (ahead != 0) {
      for (size_t line = 0; line < 256; line += 64) _mm_prefetch(data + i + ahead + line, _MM_HINT_T0);
    }
    for (size_t j = 0; j < 8; ++j) {
      sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
  for (size_t j = 1; j < 8; ++j) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
  asm volatile("" : : "x"(sum[0]));
}

// One instruction on twelve independent registers, so that only its throughput counts.
#define HK_TWELVE(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)
#define HK_CLOBBER                                                                                       \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

// vpmaddubsw into temporaries, vpaddw into the sums: what AVX2 makes of 32 products of bytes. Six at a time,
// because the two compete for ports and strict alternation loses 5 % (seen on Zen 3).
#define HK_SIX(OP) OP(6, 0) OP(7, 1) OP(8, 2) OP(9, 3) OP(10, 4) OP(11, 5)
#define HK_MADDUBS(t, i) "vpmaddubsw %%ymm15, %%ymm14, %%ymm" #t "\n"
#define HK_ADD(t, i) "vpaddw %%ymm" #t ", %%ymm" #i ", %%ymm" #i "\n"
__attribute__((target("avx2"))) void maddubs(long rounds) {
  asm volatile("vzeroall" ::: HK_CLOBBER);
  for (long i = 0; i < rounds; ++i) {
    asm volatile(HK_SIX(HK_MADDUBS) HK_SIX(HK_ADD) HK_SIX(HK_MADDUBS) HK_SIX(HK_ADD)::: HK_CLOBBER);
  }
}

#define HK_VNNI_Y(i) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #i "\n"
__attribute__((target("avx2"))) void vnni_ymm(long rounds) {
  asm volatile("vzeroall" ::: HK_CLOBBER);
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_VNNI_Y)::: HK_CLOBBER);
}

#define HK_VNNI_Z(i) "vpdpbusd %%zmm15, %%zmm14, %%zmm" #i "\n"
__attribute__((target("avx512f"))) void vnni_zmm(long rounds) {
  asm volatile("vzeroall" ::: HK_CLOBBER);
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_VNNI_Z)::: HK_CLOBBER);
}

// Four sums, three times. The library has asked the system for the tiles by now.
#define HK_TDP(i) "tdpbsud %%tmm6, %%tmm5, %%tmm" #i "\n"
#define HK_FOUR(OP) OP(0) OP(1) OP(2) OP(3)
void amx(long rounds) {
  struct alignas(64) { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
  asm volatile("ldtilecfg %0" ::"m"(config));
  for (long i = 0; i < rounds; ++i) asm volatile(HK_FOUR(HK_TDP) HK_FOUR(HK_TDP) HK_FOUR(HK_TDP)::: "memory");
  asm volatile("tilerelease");
}

#define HK_FMA_Y(i) "vfmadd231ps %%ymm15, %%ymm14, %%ymm" #i "\n"
__attribute__((target("avx2,fma"))) void fma_ymm(long rounds) {
  asm volatile("vzeroall" ::: HK_CLOBBER);
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_FMA_Y)::: HK_CLOBBER);
}

#define HK_FMA_Z(i) "vfmadd231ps %%zmm15, %%zmm14, %%zmm" #i "\n"
__attribute__((target("avx512f"))) void fma_zmm(long rounds) {
  asm volatile("vzeroall" ::: HK_CLOBBER);
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_FMA_Z)::: HK_CLOBBER);
}

#elif defined(__aarch64__)

void read_all(const char* data, size_t bytes, size_t ahead) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8) {
    if (ahead != 0) __builtin_prefetch(data + 8 * i + ahead);
    for (size_t j = 0; j < 8; ++j) sum[j] ^= words[i + j];
  }
  for (size_t j = 1; j < 8; ++j) sum[0] ^= sum[j];
  asm volatile("" : : "r"(sum[0]));
}

#define HK_TWELVE(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)
#define HK_CLOBBER "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v14", "v15"
#define HK_SDOT(i) "sdot v" #i ".4s, v14.16b, v15.16b\n"
__attribute__((target("arch=armv8.2-a+dotprod"))) void sdot(long rounds) {
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_SDOT)::: HK_CLOBBER);
}

#define HK_FMLA(i) "fmla v" #i ".4s, v14.4s, v15.4s\n"
void fmla(long rounds) {
  asm volatile("movi v14.4s, #0\n movi v15.4s, #0" ::: "v14", "v15");
  for (long i = 0; i < rounds; ++i) asm volatile(HK_TWELVE(HK_FMLA)::: HK_CLOBBER);
}

#endif

struct Peak {
  const char* isa;
  void (*run)(long rounds);
  double operations;  // of one instruction: multiplications and additions
};

const Peak kIntegerPeaks[] = {
#if defined(__x86_64__)
    {"avx2", maddubs, 64}, {"avxvnni", vnni_ymm, 64}, {"avx512vnni", vnni_zmm, 128}, {"amx", amx, 32768},
#elif defined(__aarch64__)
    {"neon", sdot, 32},
#endif
    {nullptr, nullptr, 0}};

const Peak kFloatPeaks[] = {
#if defined(__x86_64__)
    {"avx2", fma_ymm, 16}, {"avxvnni", fma_ymm, 16}, {"avx512vnni", fma_zmm, 32}, {"amx", fma_zmm, 32},
#elif defined(__aarch64__)
    {"neon", fmla, 8},
#endif
    {nullptr, nullptr, 0}};

double peak(const Peak* table, const char* isa, int threads) {
  for (const Peak* peak = table; peak->isa != nullptr; ++peak) {
    if (std::strcmp(peak->isa, isa) != 0) continue;
    const long rounds = 300'000;
    const double seconds = best_seconds(threads, 25, [&](int) { peak->run(rounds); });
    return 12.0 * rounds * threads * peak->operations / seconds;
  }
  return 0.0;
}

}  // namespace

extern "C" {

// Bytes that the caller may read and write, aligned to 2 MiB; on huge pages if `huge` and the system grants them.
void* bench_allocate(size_t bytes, int huge) {
  const size_t step = size_t{2} << 20;
  const size_t size = (bytes + step - 1) / step * step + step;  // one more: streams may ask ahead of the end
  void* data = std::aligned_alloc(step, size);
  if (data == nullptr) return nullptr;
  madvise(data, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  std::memset(data, 1, size);
  return data;
}

void bench_free(void* data) { std::free(data); }

// Bytes per second that `threads` threads read together, each its own `bytes` (a multiple of 256) again and again.
double bench_read_bandwidth(size_t bytes, int threads, int huge) {
  std::vector<char*> data(threads);
  for (auto& part : data) part = static_cast<char*>(bench_allocate(bytes, huge));
  const size_t repeats = std::max<size_t>(1, (size_t{64} << 20) / bytes);
  double best = 0.0;
  for (size_t ahead : kAhead) {
    const double seconds = best_seconds(threads, 7, [&](int thread) {
      for (size_t i = 0; i < repeats; ++i) read_all(data[thread], bytes, ahead);
    });
    best = std::max(best, static_cast<double>(bytes) * repeats * threads / seconds);
  }
  for (auto* part : data) bench_free(part);
  return best;
}

// Operations per second (a multiply-add is two) of the best instruction that `isa` names; 0 for an unknown one.
// Ends the process with an illegal instruction where the processor lacks it.
double bench_int8_peak(const char* isa, int threads) { return peak(kIntegerPeaks, isa, threads); }
double bench_fp32_peak(const char* isa, int threads) { return peak(kFloatPeaks, isa, threads); }
}
