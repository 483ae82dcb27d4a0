// What the two drivers share: scratch memory, tasks, and how a product is cut into them.
#ifndef HYBRIDKIT_WORK_H
#define HYBRIDKIT_WORK_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {

constexpr const char* kOutOfMemory = "out of memory";

// Memory of the calling thread, kept for the next call: a product is too short to let it pay for page faults. Uses
// on one thread nest like the calls that make them, and each depth keeps a block of its own.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    Kept& kept = mine();
    const int depth = kept.depth++;
    Block& block = depth < kDepths ? kept.blocks[depth] : extra_;
    if (block.bytes < bytes) {
      release(block.memory);
      const size_t rounded = (bytes + kRounding - 1) / kRounding * kRounding;
      void* memory = allocate(rounded);
      block = Block{memory, memory == nullptr ? 0 : rounded};
    }
    enough_ = block.bytes >= bytes;
    next_ = static_cast<char*>(block.memory);
  }
  ~Scratch() {
    Kept& kept = mine();
    const int depth = --kept.depth;
    Block& block = depth < kDepths ? kept.blocks[depth] : extra_;
    if (depth >= kDepths || block.bytes > kMostKept) {
      release(block.memory);
      block = Block{};
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  explicit operator bool() const { return enough_; }

  // The next `count` elements, 64-byte aligned; `bytes` of the constructor is the sum of size<T>(count).
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += size<T>(count);
    return taken;
  }
  template <class T>
  static size_t size(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

 private:
  struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
  };
  static constexpr int kDepths = 4;
#if defined(HYBRIDKIT_CHECKED)  // what is written beyond a block shows
  static constexpr size_t kRounding = 1, kMostKept = 0;
#else
  static constexpr size_t kRounding = 4096;
  static constexpr size_t kMostKept = size_t{16} << 20;  // a larger block is given back after the call
#endif
  struct Kept {
    Block blocks[kDepths];
    int depth = 0;
    ~Kept() {
      for (Block& block : blocks) release(block.memory);
    }
  };

  static Kept& mine() {
    thread_local Kept kept;
    return kept;
  }
#if defined(_WIN32)
  static void* allocate(size_t bytes) { return _aligned_malloc(bytes, 64); }
  static void release(void* memory) { _aligned_free(memory); }
#else
  static void* allocate(size_t bytes) {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
  }
  static void release(void* memory) { std::free(memory); }
#endif

  Block extra_;  // beyond kDepths
  bool enough_;
  char* next_;
};

// task(0) ... task(count - 1), side by side where there is someone to do it.
template <class Task>
void for_each_task(const hybridkit_parallel* parallel, int64_t count, const Task& task) {
  if (parallel == nullptr || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  parallel->run(
      parallel->pool, [](void* state, size_t i) { (*static_cast<const Task*>(state))(static_cast<int64_t>(i)); },
      const_cast<Task*>(&task), static_cast<size_t>(count));
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// How the rows of int8 activations lie: in panels that are nearly equal, or one after the other in whole cache lines.
struct Panels {
  int64_t rows;       // of a panel
  int64_t step;       // what the rows of a task are a multiple of
  int64_t row_bytes;  // from row to row of panels' first rows

  // Rows of which there is memory, and bytes of their codes: where one row follows the other, 16 are read at a time,
  // and 64 columns.
  int64_t padded(int64_t count) const { return step == rows ? count : round_up(count, kTileRows); }
  int64_t bytes(int64_t count) const { return padded(count) * row_bytes + (step == rows ? 0 : kBlockBytes); }
};

inline Panels panels_of(const Isa& isa, bool grouped, int64_t M, int64_t padded_K) {
  constexpr int64_t page = 4096;  // rows that are whole pages apart would share places in the cache
  const int matrix_rows = grouped ? isa.group_matrix_rows : isa.matrix_rows;
  if (matrix_rows != 0 && M >= matrix_rows) {
    const int64_t bytes = round_up(padded_K, kBlockBytes);
    return {1, 2 * kTileRows, bytes % (page / 8) == 0 ? bytes + kBlockBytes : bytes};
  }
  const int64_t rows = divide_up(M, divide_up(M, grouped ? isa.group_panel_rows : isa.panel_rows));
  return {rows, rows, padded_K};
}

// The scale of activations whose magnitude bits are `largest`: NaN where they are not all finite.
inline float scale_of(uint32_t largest) {
  if (largest >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  float value;
  static_assert(sizeof value == sizeof largest, "float is 32 bits");
  __builtin_memcpy(&value, &largest, sizeof value);
  return (value > kLeastMax ? value : kLeastMax) / 127.0f;
}

// A product cut into row_blocks x tile_groups tasks.
struct Grid {
  int64_t row_blocks, rows;    // `rows` of each block but the last
  int64_t tile_groups, tiles;  // `tiles` of each group but the last
  int64_t tasks() const { return row_blocks * tile_groups; }
};

// A task is some microseconds of work, and there are a few dozen at most, so that both few and many threads end
// together; those of rows are multiples of `step`. Row blocks beyond what kBlockRows asks for cost unpacking again: only where there are too few tiles.
inline Grid grid_of(int64_t M, int64_t tiles, int64_t K, int64_t step) {
  constexpr int64_t task_macs = 400'000, most_tasks = 64;
  const int64_t macs_of_tile = at_least(at_most(M, kBlockRows) * K * kTileRows, 1);
  const int64_t macs = M * tiles * K * kTileRows;
  const int64_t wanted = at_least(at_most(macs / task_macs, most_tasks), 1);
  const int64_t block = kBlockRows / step * step;
  int64_t row_blocks = divide_up(M, block);
  if (row_blocks * tiles < wanted) row_blocks = at_most(divide_up(wanted, tiles), divide_up(M, step));
  Grid grid;
  grid.rows = round_up(divide_up(M, row_blocks), step);
  grid.row_blocks = divide_up(M, grid.rows);
  const int64_t groups = at_least(at_most(divide_up(wanted, grid.row_blocks), tiles), 1);
  const int64_t least_tiles = at_least(divide_up(task_macs / 4, macs_of_tile), 1);
  grid.tiles = at_least(divide_up(tiles, groups), at_most(least_tiles, tiles));
  if (grid.tiles > 1 && grid.tiles < tiles) grid.tiles = round_up(grid.tiles, 2);  // wide kernels take two at a time
  grid.tile_groups = divide_up(tiles, grid.tiles);
  return grid;
}

}  // namespace hybridkit
#endif
