// y = x W^T: activations are quantised once, then tasks multiply blocks of rows with groups of tiles.
#include <atomic>
#include <cstring>

#include "dense.h"
#include "door.h"
#include "half.h"
#include "hybridkit_kernels.h"
#include "isa.h"
#include "work.h"

namespace hybridkit {
namespace {

// Rows whose activations are held as codes at a time: bounds the scratch memory to 32 MiB (or one panel).
constexpr int64_t kScratchBytes = int64_t{32} << 20;

struct Product {
  const Isa& isa;
  const hybridkit_matrix& matrix;
  int32_t dtype;
  const void* x;
  void* y;
  const hybridkit_parallel* parallel;

  int bits() const { return bits_of(matrix.codec); }
  bool grouped() const { return is_nbit(matrix.codec); }
  int64_t groups() const { return grouped() ? groups_of(matrix.K, matrix.group_size) : 1; }
  bool dense() const { return is_dense(matrix.codec); }
  Unit unit() const { return unit_of(matrix.codec); }
  const DenseKernels& dense_kernels() const { return dense_kernels_of(isa, matrix.codec); }
  // of two-bit codes, where dense ones are expanded
  int64_t blocks() const { return dense() ? unit().blocks * unit().of(matrix.K) : blocks_of(bits(), matrix.K); }
  int64_t tile_bytes() const { return dense() ? unit().bytes * unit().of(matrix.K) : blocks() * kBlockBytes; }
  int64_t padded_K() const { return blocks() * block_columns(bits()); }
};

// What a task of the grid multiplies, without its activations. Output of another type than float32 goes to `buffer`
// first ([rows][16 tiles]), else straight to y.
template <class W>
W work_of(const Product& p, const Grid& grid, int64_t task, int64_t first_row, int64_t rows, float* buffer) {
  const int64_t row = task % grid.row_blocks * grid.rows, tile = task / grid.row_blocks * grid.tiles;
  W work{};
  work.bits = p.bits();
  work.blocks = p.blocks();
  work.tiles = at_most(grid.tiles, tiles_of(p.matrix.N) - tile);
  work.codes = p.matrix.codes + tile * p.tile_bytes();
  work.columns = at_most(work.tiles * kTileRows, p.matrix.N - tile * kTileRows);
  if (p.grouped()) {
    const bool half = p.matrix.scale_dtype == HYBRIDKIT_F16;
    const char* scales = static_cast<const char*>(p.matrix.group_scale);
    work.groups = {p.groups(), p.matrix.group_size / kGranule,
                   scales + tile * p.groups() * kTileRows * size_of(p.matrix.scale_dtype), half};
  } else {
    work.scale = p.matrix.scale + tile * kTileRows;
  }
  work.bias = p.matrix.bias + tile * kTileRows;
  work.rows = at_most(grid.rows, rows - row);
  work.stride = buffer == nullptr ? p.matrix.N : work.columns;
  work.y = buffer == nullptr
               ? static_cast<float*>(p.y) + (first_row + row) * p.matrix.N + tile * kTileRows
               : buffer;
  return work;
}

constexpr int64_t kExpanded = 2;  // tiles at a time: as many as wide kernels take

// Runs a kernel of two-bit codes on dense tiles. False without memory.
template <class W, class Kernel>
bool run_expanded(const Product& p, const W& work, const Kernel& kernel) {
  const int64_t bytes = work.blocks * kBlockBytes;
  Scratch scratch(Scratch::size<uint8_t>(kExpanded * bytes));
  if (!scratch) return false;
  uint8_t* expanded = scratch.take<uint8_t>(kExpanded * bytes);
  W part = work;
  part.codes = expanded;
  for (int64_t tile = 0; tile < work.tiles; tile += kExpanded) {
    part.tiles = at_most(kExpanded, work.tiles - tile);
    for (int64_t t = 0; t < part.tiles; ++t) {
      const uint8_t* units = work.codes + (tile + t) * p.tile_bytes();
      p.dense_kernels().expand(units, work.blocks / p.unit().blocks, expanded + t * bytes);
    }
    part.columns = at_most(part.tiles * kTileRows, work.columns - tile * kTileRows);
    part.scale = work.scale + tile * kTileRows;
    part.bias = work.bias + tile * kTileRows;
    part.y = work.y + tile * kTileRows;
    kernel(part);
  }
  return true;
}

// The integer products of a task. False without memory.
bool multiply_codes(const Product& p, const Int8Work& work) {
  if (!p.dense()) {
    p.grouped() ? p.isa.group_int8(work) : p.isa.int8(work);
    return true;
  }
  const bool in_panels = work.panel > 1 || work.rows == 1;
  const auto kernel = p.dense_kernels().int8;
  if (!in_panels || kernel == nullptr) return run_expanded(p, work, p.isa.int8);
  kernel(work);
  return true;
}

// The same of floats.
bool multiply_floats(const Product& p, const FloatWork& work) {
  const auto kernel = p.dense() ? p.dense_kernels().floats : p.grouped() ? p.isa.group_floats : p.isa.floats;
  if (kernel == nullptr) return run_expanded(p, work, p.isa.floats);
  kernel(work);
  return true;
}

void write_back(const Product& p, const Work& work, int64_t row, int64_t column) {
  for (int64_t m = 0; m < work.rows; ++m) {
    from_floats(p.dtype, work.y + m * work.stride, work.columns, p.y, (row + m) * p.matrix.N + column);
  }
}

// Row m of x as float32: in place, or converted into `buffer`.
const float* row_of(const Product& p, int64_t m, float* buffer) {
  if (p.dtype == HYBRIDKIT_F32) return static_cast<const float*>(p.x) + m * p.matrix.K;
  to_floats(p.dtype, p.x, m * p.matrix.K, p.matrix.K, buffer);
  return buffer;
}

struct Activations {
  int8_t* codes;  // as Int8Work::x
  float* scale;   // as Int8Work::x_scale
  int32_t* sum;
};

// One row of activations with groups: the codes of its granules, which are `stride` bytes apart, scales and sums.
void quantize_groups(const Product& p, const float* x, int8_t* codes, int64_t stride, float* scale, int32_t* sum) {
  const int64_t K = p.matrix.K, size = p.matrix.group_size, granules = p.padded_K() / kGranule;
  const int32_t less = -(1 << (p.bits() - 1));
  const bool blocks = p.matrix.activations == HYBRIDKIT_INT8_BLOCKS;
  float s = blocks ? 0 : scale_of(p.isa.magnitude(x, K));
  int64_t done = 0;  // granules
  for (int64_t g = 0, first = 0; first < K; ++g, first += size) {
    const int64_t columns = at_most(size, K - first), last = divide_up(first + columns, kGranule);
    if (blocks) s = scale_of(p.isa.magnitude(x + first, columns));
    scale[g] = s;
    sum[g] = s == s ? less * p.isa.quantize(x + first, columns, s, codes + done * stride, stride) : 0;
    if (s == s) done = last;
    for (; done < last; ++done) std::memset(codes + done * stride, 0, kGranule);
  }
  for (; done < granules; ++done) std::memset(codes + done * stride, 0, kGranule);
}

// The panel that begins at row `first`, of `rows` rows; `offset` is the first row of x.
void quantize_panel(const Product& p, const Panels& panels, int64_t offset, int64_t first, int64_t rows,
                    const Activations& to, float* buffer) {
  const int64_t stride = rows * kGranule, granules = p.padded_K() / kGranule;
  const int64_t used = divide_up(p.matrix.K, kGranule);
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = row_of(p, offset + first + r, buffer);
    if (p.grouped()) {
      const int64_t place = (first + r) * p.groups();
      int8_t* codes = to.codes + first * panels.row_bytes + r * kGranule;
      quantize_groups(p, x, codes, stride, to.scale + place, to.sum + place);
      continue;
    }
    const float s = scale_of(p.isa.magnitude(x, p.matrix.K));
    int8_t* codes = to.codes + first * panels.row_bytes + r * kGranule;
    to.scale[first + r] = s;
    int64_t done = 0;
    to.sum[first + r] = 0;
    if (s == s) {
      to.sum[first + r] = p.isa.quantize(x, p.matrix.K, s, codes, stride);
      done = used;
    }
    for (; done < granules; ++done) std::memset(codes + done * stride, 0, kGranule);
  }
}

bool int8_rows(const Product& p, int64_t first_row, int64_t rows) {
  const Panels panels = panels_of(p.isa, p.grouped(), rows, p.padded_K());
  const int64_t panel = panels.rows, count = divide_up(rows, panel), scales = panels.padded(rows) * p.groups();
  const Grid grid = grid_of(rows, tiles_of(p.matrix.N), p.matrix.K, panels.step);
  Scratch scratch(Scratch::size<int8_t>(panels.bytes(rows)) + Scratch::size<float>(scales) +
                  Scratch::size<int32_t>(scales));
  if (!scratch) return false;
  Activations a;
  a.codes = scratch.take<int8_t>(panels.bytes(rows));
  a.scale = scratch.take<float>(scales);
  a.sum = scratch.take<int32_t>(scales);
  // Rows that do not exist are multiplied, too, and numbers that are not normal would take their time.
  for (int64_t i = rows * p.groups(); i < scales; ++i) a.scale[i] = 0;

  std::atomic<bool> complete{true};  // tasks that lack memory say so
  const int64_t panels_of_task = at_least(65536 / (panel * p.matrix.K), 1);
  for_each_task(p.parallel, divide_up(count, panels_of_task), [&](int64_t task) {
    Scratch converted(p.dtype == HYBRIDKIT_F32 ? 0 : Scratch::size<float>(p.matrix.K));
    if (p.dtype != HYBRIDKIT_F32 && !converted) return void(complete = false);
    const int64_t end = at_most((task + 1) * panels_of_task, count);
    for (int64_t i = task * panels_of_task; i < end; ++i) {
      const int64_t first = i * panel;
      quantize_panel(p, panels, first_row, first, at_most(panel, rows - first), a, converted.take<float>(0));
    }
  });
  if (!complete) return false;

  for_each_task(p.parallel, grid.tasks(), [&](int64_t task) {
    Scratch converted(p.dtype == HYBRIDKIT_F32 ? 0 : Scratch::size<float>(grid.rows * grid.tiles * kTileRows));
    if (p.dtype != HYBRIDKIT_F32 && !converted) return void(complete = false);
    const int64_t row = task % grid.row_blocks * grid.rows;
    float* buffer = p.dtype == HYBRIDKIT_F32 ? nullptr : converted.take<float>(0);
    auto work = work_of<Int8Work>(p, grid, task, first_row, rows, buffer);
    work.x = a.codes + row * panels.row_bytes;
    work.panel = panel;
    work.row_bytes = panels.row_bytes;
    work.x_scale = a.scale + row * p.groups();
    work.x_sum = a.sum + row * p.groups();
    if (!multiply_codes(p, work)) return void(complete = false);
    if (buffer != nullptr) write_back(p, work, first_row + row, task / grid.row_blocks * grid.tiles * kTileRows);
  });
  return complete;
}

bool float_rows(const Product& p, int64_t first_row, int64_t rows) {
  const Grid grid = grid_of(rows, tiles_of(p.matrix.N), p.matrix.K, 1);
  const bool convert = p.dtype != HYBRIDKIT_F32;
  Scratch scratch(convert ? Scratch::size<float>(rows * p.matrix.K) : 0);
  if (convert && !scratch) return false;
  const float* x = static_cast<const float*>(p.x) + first_row * p.matrix.K;
  if (convert) {
    float* converted = scratch.take<float>(rows * p.matrix.K);
    to_floats(p.dtype, p.x, first_row * p.matrix.K, rows * p.matrix.K, converted);
    x = converted;
  }
  std::atomic<bool> complete{true};
  for_each_task(p.parallel, grid.tasks(), [&](int64_t task) {
    Scratch output(convert ? Scratch::size<float>(grid.rows * grid.tiles * kTileRows) : 0);
    if (convert && !output) return void(complete = false);
    const int64_t row = task % grid.row_blocks * grid.rows;
    float* buffer = convert ? output.take<float>(0) : nullptr;
    auto work = work_of<FloatWork>(p, grid, task, first_row, rows, buffer);
    work.x = x + row * p.matrix.K;
    work.x_stride = p.matrix.K;
    work.K = p.matrix.K;
    if (!multiply_floats(p, work)) return void(complete = false);
    if (buffer != nullptr) write_back(p, work, first_row + row, task / grid.row_blocks * grid.tiles * kTileRows);
  });
  return complete;
}

const char* problem(const hybridkit_matrix& matrix, int32_t dtype, const void* x, int64_t M, const void* y) {
  const int64_t N = matrix.N, K = matrix.K;
  if (const char* wrong = problem_with_shape(matrix)) return wrong;
  if (const char* wrong = problem_with_matrix(matrix, hybridkit_code_bytes(matrix.codec, 1, N, K), dtype)) return wrong;
  if (M < 0) return "M is negative";
  if (const char* wrong = problem_with_tensor(x, {M, K})) return wrong;
  return problem_with_tensor(y, {M, N});
}

// How many rows are multiplied at a time.
int64_t most_rows(const hybridkit_matrix& matrix) {
  const Unit unit = unit_of(matrix.codec);
  const int64_t padded = is_dense(matrix.codec) ? unit.of(matrix.K) * unit.columns()
                                                : padded_columns(bits_of(matrix.codec), matrix.K);
  const int64_t scales = matrix.group_size == 0 ? 0 : 8 * groups_of(matrix.K, matrix.group_size);
  const int64_t bytes_of_row = matrix.activations == HYBRIDKIT_FLOAT ? 4 * padded : padded + scales;
  return at_least(kScratchBytes / bytes_of_row / kBlockRows * kBlockRows, kBlockRows);
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

const char* hybridkit_matmul(const hybridkit_matrix* matrix, int32_t dtype, const void* x, int64_t M, void* y,
                             const hybridkit_parallel* parallel) {
  if (const char* wrong = problem(*matrix, dtype, x, M, y)) return wrong;
  const Product product{isa(), *matrix, dtype, x, y, parallel};
  const bool int8 = matrix->activations != HYBRIDKIT_FLOAT;
  const int64_t most = most_rows(*matrix);
  for (int64_t row = 0; row < M; row += most) {
    const int64_t rows = at_most(most, M - row);
    if (!(int8 ? int8_rows(product, row, rows) : float_rows(product, row, rows))) return kOutOfMemory;
  }
  return nullptr;
}

const char* hybridkit_kernel(const hybridkit_matrix* matrix, int64_t M) {
  if (M < 0 || problem_with_shape(*matrix) != nullptr) return nullptr;
  if (is_nbit(matrix->codec)) return M == 1 ? "stream" : "tile";
  const bool int8 = matrix->activations == HYBRIDKIT_INT8;
  return M <= (int8 ? isa().stream_rows : isa().stream_rows_float) ? "stream" : "tile";
}

int64_t hybridkit_tasks(const hybridkit_matrix* matrix, int64_t M) {
  if (M < 0 || problem_with_shape(*matrix) != nullptr) return 0;
  if (M == 0) return 1;
  const int64_t rows = at_most(M, most_rows(*matrix));
  const bool int8 = matrix->activations != HYBRIDKIT_FLOAT;
  const int64_t step = int8 ? panels_of(isa(), is_nbit(matrix->codec), rows, matrix->K).step : 1;
  return grid_of(rows, tiles_of(matrix->N), matrix->K, step).tasks();
}

}  // extern "C"
