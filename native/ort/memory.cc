#include "memory.h"

#include <new>

#if defined(__linux__)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

namespace hybridkit::ort {
namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
constexpr size_t kChunk = size_t{64} << 20;   // address space, not memory
constexpr size_t kLine = 64;                  // a block of codes is one cache line
constexpr size_t kSlice = size_t{4} << 20;    // copied before its pages are given up
constexpr size_t kSmall = size_t{256} << 10;  // less than this has few pages of any size
constexpr int kCollapse = 25;                 // MADV_COLLAPSE and PR_GET_THP_DISABLE: older headers lack them
constexpr int kGetDisabled = 42;

uintptr_t down(uintptr_t value, uintptr_t to) { return value / to * to; }
uintptr_t up(uintptr_t value, uintptr_t to) { return down(value + to - 1, to); }
uintptr_t address(const uint8_t* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Reserved address space in which codes of many layers lie one behind the other, so that a layer of less than
// a huge page wastes nothing. Unused parts take no memory.
struct Chunk {
  size_t size, used = 0;
  uint8_t* mapping;
  uint8_t* base;

  explicit Chunk(size_t bytes) : size(up(std::max(bytes, kChunk), kHugePage)) {
    void* mapped =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mapping = static_cast<uint8_t*>(mapped);
    base = mapping + (up(address(mapping), kHugePage) - address(mapping));
    madvise(base, size, MADV_HUGEPAGE);  // without huge pages small ones do
  }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;
  ~Chunk() { munmap(mapping, size + kHugePage); }
};

enum class Pages { kFile, kOther, kUnknown };

// What is behind [codes, codes + bytes): pages of a file that nobody has written to, or that nobody has read yet, or
// anything else. /proc/self/pagemap has eight bytes for each page.
Pages pages_behind(const uint8_t* codes, size_t bytes) {
  constexpr uint64_t present = uint64_t{1} << 63, swapped = uint64_t{1} << 62, of_file = uint64_t{1} << 61;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = address(codes) / page, last = (address(codes) + bytes - 1) / page;
  std::vector<uint64_t> entries(last - first + 1);
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return Pages::kUnknown;
  const size_t wanted = entries.size() * sizeof(uint64_t);
  const ssize_t found = pread(pagemap, entries.data(), wanted, static_cast<off_t>(first * sizeof(uint64_t)));
  close(pagemap);
  if (found != static_cast<ssize_t>(wanted)) return Pages::kUnknown;
  for (uint64_t entry : entries) {
    if ((entry & present) != 0 ? (entry & of_file) == 0 : (entry & swapped) != 0) return Pages::kOther;
  }
  return Pages::kFile;
}

bool system_has_huge_pages() {
  char text[64] = {};
  const int file = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t size = read(file, text, sizeof text - 1);
  close(file);
  return size > 0 && std::strstr(text, "[never]") == nullptr;
}

// By the system, and at present for this process.
bool huge_pages_allowed() {
  static const bool by_system = system_has_huge_pages();
  return by_system && prctl(kGetDisabled, 0, 0, 0, 0) == 0;
}

}  // namespace

std::shared_ptr<uint8_t> allocate_codes(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Chunk> newest;  // a chunk lives as long as codes in it
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Chunk> chunk = newest.lock();
  if (chunk == nullptr || chunk->size - chunk->used < bytes) newest = chunk = std::make_shared<Chunk>(bytes);
  uint8_t* codes = chunk->base + chunk->used;
  chunk->used += std::min(up(bytes, kLine), chunk->size - chunk->used);
  return std::shared_ptr<uint8_t>(chunk, codes);
}

std::shared_ptr<const uint8_t> settle(const uint8_t* codes, size_t bytes) {
  if (bytes < kSmall || !huge_pages_allowed()) return nullptr;
  const Pages pages = pages_behind(codes, bytes);
  if (pages == Pages::kFile) {
    std::shared_ptr<uint8_t> copy = allocate_codes(bytes);
    for (size_t done = 0; done < bytes; done += kSlice) {  // a large matrix is never there twice
      const size_t some = std::min(kSlice, bytes - done);
      std::memcpy(copy.get() + done, codes + done, some);
      give_up(codes + done, some);
    }
    return copy;
  }
  if (pages == Pages::kOther) {
    // The runtime lays its weights side by side. A page is changed with the codes that end it, and what lies
    // before them in it moves with them.
    const uintptr_t from = down(address(codes), kHugePage), to = down(address(codes) + bytes, kHugePage);
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, kCollapse);
  }
  return nullptr;
}

bool equal(const uint8_t* ours, const uint8_t* codes, size_t bytes) {
  bool same = true;
  for (size_t done = 0; done < bytes && same; done += kSlice) {
    const size_t some = std::min(kSlice, bytes - done);
    same = std::memcmp(ours + done, codes + done, some) == 0;
    give_up(codes + done, some);
  }
  return same;
}

void give_up(const uint8_t* codes, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t from = up(address(codes), page), to = down(address(codes) + bytes, page);
  if (from < to && pages_behind(codes, bytes) == Pages::kFile)
    madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

}  // namespace hybridkit::ort

#else  // no huge pages that a program can ask for

#include <cstring>

namespace hybridkit::ort {

std::shared_ptr<uint8_t> allocate_codes(size_t bytes) {
  constexpr std::align_val_t line{64};
  return std::shared_ptr<uint8_t>(static_cast<uint8_t*>(::operator new(bytes, line)),
                                  [](uint8_t* memory) { ::operator delete(memory, std::align_val_t{64}); });
}

std::shared_ptr<const uint8_t> settle(const uint8_t*, size_t) { return nullptr; }

bool equal(const uint8_t* ours, const uint8_t* codes, size_t bytes) { return std::memcmp(ours, codes, bytes) == 0; }

void give_up(const uint8_t*, size_t) {}

}  // namespace hybridkit::ort

#endif
