// Convolution: samples become channels-last images with a border of zeros, of codes (int8) or numbers (float). A task
// gathers the patches of a block of output positions, a few contiguous runs each, and multiplies them like a matmul.
#include <atomic>
#include <cstring>
#include <initializer_list>

#include "door.h"
#include "half.h"
#include "hybridkit_kernels.h"
#include "isa.h"
#include "work.h"

namespace hybridkit {
namespace {

constexpr int64_t kImageBytes = int64_t{32} << 20;  // images that are held at a time (at least one)
constexpr int64_t kLeastTasks = 8;

// The geometry with three axes, outer ones of size 1 where there are fewer.
struct Shape {
  int64_t channels, group, in[3], kernel[3], stride[3], dilation[3], begin[3], padded[3], out[3];
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t positions() const { return out[0] * out[1] * out[2]; }
  int64_t pixels() const { return in[0] * in[1] * in[2]; }
  int64_t image() const { return padded[0] * padded[1] * padded[2] * channels; }
};

Shape shape_of(const hybridkit_geometry& g, const int64_t out_size[3]) {
  Shape s{};
  s.channels = g.channels;
  s.group = g.group;
  for (int axis = 0; axis < 3; ++axis) {
    const int given = axis - (3 - g.axes);
    const bool real = given >= 0;
    s.in[axis] = real ? g.size[given] : 1;
    s.kernel[axis] = real ? g.kernel[given] : 1;
    s.stride[axis] = real ? g.stride[given] : 1;
    s.dilation[axis] = real ? g.dilation[given] : 1;
    s.begin[axis] = real ? g.pad_begin[given] : 0;
    s.padded[axis] = s.in[axis] + s.begin[axis] + (real ? g.pad_end[given] : 0);
    s.out[axis] = real ? out_size[given] : 1;
  }
  return s;
}

// One sample [C][pixels] of numbers or codes into an image [padded...][C] whose border is zero already. Channels go in blocks, so that a
// line of the image is written once and not once for every channel.
template <class From, class T>
void to_image(const Shape& s, const From* sample, T* image) {
  constexpr int64_t block = 32;
  const int64_t plane = s.pixels();
  for (int64_t first = 0; first < s.channels; first += block) {
    const int64_t end = at_most(first + block, s.channels);
    for (int64_t d = 0; d < s.in[0]; ++d) {
      for (int64_t h = 0; h < s.in[1]; ++h) {
        const From* from = sample + (d * s.in[1] + h) * s.in[2];
        const int64_t row = (d + s.begin[0]) * s.padded[1] + h + s.begin[1];
        T* to = image + (row * s.padded[2] + s.begin[2]) * s.channels;
        for (int64_t w = 0; w < s.in[2]; ++w) {
          for (int64_t c = first; c < end; ++c) to[w * s.channels + c] = static_cast<T>(from[c * plane + w]);
        }
      }
    }
  }
}

// Runs are copied in whole pieces of 16 bytes: short ones are most of the work of small layers. What goes beyond a
// run is overwritten by the next; images and patches have room for the last.
constexpr int64_t kPiece = 16;

template <class T>
void copy_run(const T* from, int64_t count, T* to) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const char* source = reinterpret_cast<const char*>(from);
  char* target = reinterpret_cast<char*>(to);
  for (int64_t i = 0; i < bytes; i += kPiece) std::memcpy(target + i, source + i, kPiece);
}

// The patch of one output position for one group: [kernel...][channels / group], and up to kPiece bytes beyond.
template <class T>
void gather(const Shape& s, const T* image, int64_t position, int64_t group, T* patch) {
  const int64_t channels = s.channels / s.group;
  const int64_t d = position / (s.out[1] * s.out[2]), h = position / s.out[2] % s.out[1], w = position % s.out[2];
  const bool contiguous = s.group == 1 && s.dilation[2] == 1;
  const int64_t runs = contiguous ? 1 : s.kernel[2];
  const int64_t run = contiguous ? s.kernel[2] * channels : channels;
  for (int64_t i = 0; i < s.kernel[0]; ++i) {
    for (int64_t j = 0; j < s.kernel[1]; ++j) {
      const int64_t row = (d * s.stride[0] + i * s.dilation[0]) * s.padded[1] + h * s.stride[1] + j * s.dilation[1];
      const T* from = image + (row * s.padded[2] + w * s.stride[2]) * s.channels + group * channels;
      for (int64_t r = 0; r < runs; ++r, patch += run, from += s.dilation[2] * s.channels) {
        copy_run(from, run, patch);
      }
    }
  }
}

struct Call {
  const Isa& isa;
  const hybridkit_matrix& matrix;
  const Shape& shape;
  int32_t dtype;
  int bits;
  Panels panels;
  int64_t block;  // rows of a task
  int64_t rows() const { return matrix.N / shape.group; }
  int64_t tiles() const { return tiles_of(rows()); }
  int64_t blocks() const { return blocks_of(bits, matrix.K); }
  int64_t padded_K() const { return blocks() * block_columns(bits); }

  template <class W>
  W work(int64_t group, int64_t rows_of_task, float* y) const {
    W w{};
    w.bits = bits;
    w.blocks = blocks();
    w.tiles = tiles();
    w.codes = matrix.codes + group * w.tiles * w.blocks * kBlockBytes;
    w.columns = rows();
    w.scale = matrix.scale + group * rows();
    w.bias = matrix.bias + group * rows();
    w.rows = rows_of_task;
    w.stride = w.columns;
    w.y = y;
    return w;
  }
};

// Output [rows][columns] into y [columns][positions], which begins at element `base`; `turned` takes as many floats.
void scatter(const Call& call, const float* output, int64_t rows, int64_t columns, int64_t first, void* y, int64_t base,
             float* turned) {
  const int64_t positions = call.shape.positions();
  if (call.dtype == HYBRIDKIT_F32) {
    call.isa.transpose(output, columns, rows, columns, static_cast<float*>(y) + base + first, positions);
    return;
  }
  call.isa.transpose(output, columns, rows, columns, turned, rows);
  for (int64_t n = 0; n < columns; ++n) from_floats(call.dtype, turned + n * rows, rows, y, base + n * positions + first);
}

// A sample's codes as an image of T; returns its scale.
template <class T>
float quantize_sample(const Call& call, const void* x, int64_t sample, T* image) {
  const int64_t count = call.shape.channels * call.shape.pixels();
  const size_t numbers = Scratch::size<float>(count), codes = Scratch::size<int8_t>(round_up(count, kGranule));
  Scratch scratch(numbers + codes);
  if (!scratch) return 0;
  float* converted = scratch.take<float>(count);
  int8_t* flat = scratch.take<int8_t>(round_up(count, kGranule));
  const float* values = static_cast<const float*>(x) + sample * count;
  if (call.dtype != HYBRIDKIT_F32) {
    to_floats(call.dtype, x, sample * count, count, converted);
    values = converted;
  }
  const float s = scale_of(call.isa.magnitude(values, count));
  std::memset(image, 0, static_cast<size_t>(call.shape.image()) * sizeof(T));
  if (s == s) {
    call.isa.quantize(values, count, s, flat, kGranule);
    to_image(call.shape, flat, image);
  }
  return s;
}

bool float_sample(const Call& call, const void* x, int64_t sample, float* image) {
  const int64_t count = call.shape.channels * call.shape.pixels();
  Scratch scratch(Scratch::size<float>(count));
  if (!scratch) return false;
  float* values = scratch.take<float>(count);
  to_floats(call.dtype, x, sample * count, count, values);
  std::memset(image, 0, static_cast<size_t>(call.shape.image()) * sizeof(float));
  to_image(call.shape, values, image);
  return true;
}

// Patches of a block of positions as int8 panels; fills sum[rows].
void gather_panels(const Call& call, const int8_t* image, int64_t first, int64_t rows, int64_t group, int8_t* panels,
                   int32_t* sum, int8_t* patch) {
  const int64_t K = call.matrix.K, padded = call.padded_K();
  for (int64_t start = 0; start < rows; start += call.panels.rows) {
    const int64_t height = at_most(call.panels.rows, rows - start);
    for (int64_t r = 0; r < height; ++r) {
      gather(call.shape, image, first + start + r, group, patch);
      std::memset(patch + K, 0, static_cast<size_t>(padded - K));
      int8_t* to = panels + start * call.panels.row_bytes + r * kGranule;
      sum[start + r] = call.isa.place(patch, padded, to, height * kGranule);
    }
  }
}

bool int8_block(const Call& call, const int8_t* image, float s, int64_t first, int64_t rows, void* y, int64_t base) {
  const int64_t padded = call.padded_K(), columns = call.rows();
  Scratch scratch(Scratch::size<int8_t>(call.panels.bytes(rows)) + Scratch::size<int8_t>(padded + kPiece) +
                  Scratch::size<int32_t>(rows) + Scratch::size<float>(rows) + 2 * Scratch::size<float>(rows * columns));
  if (!scratch) return false;
  int8_t* panels = scratch.take<int8_t>(call.panels.bytes(rows));
  int8_t* patch = scratch.take<int8_t>(padded + kPiece);
  int32_t* sum = scratch.take<int32_t>(rows);
  float* scale = scratch.take<float>(rows);
  float* output = scratch.take<float>(rows * columns);
  float* turned = scratch.take<float>(rows * columns);
  for (int64_t r = 0; r < rows; ++r) scale[r] = s;
  for (int64_t g = 0; g < call.shape.group; ++g) {
    gather_panels(call, image, first, rows, g, panels, sum, patch);
    auto work = call.work<Int8Work>(g, rows, output);
    work.x = panels;
    work.panel = call.panels.rows;
    work.row_bytes = call.panels.row_bytes;
    work.x_scale = scale;
    work.x_sum = sum;
    call.isa.int8(work);
    scatter(call, output, rows, columns, first, y, base + g * columns * call.shape.positions(), turned);
  }
  return true;
}

bool float_block(const Call& call, const float* image, int64_t first, int64_t rows, void* y, int64_t base) {
  const int64_t K = call.matrix.K, columns = call.rows();
  Scratch scratch(Scratch::size<float>(rows * K + kPiece) + 2 * Scratch::size<float>(rows * columns));
  if (!scratch) return false;
  float* patches = scratch.take<float>(rows * K + kPiece);
  float* output = scratch.take<float>(rows * columns);
  float* turned = scratch.take<float>(rows * columns);
  for (int64_t g = 0; g < call.shape.group; ++g) {
    for (int64_t r = 0; r < rows; ++r) gather(call.shape, image, first + r, g, patches + r * K);
    auto work = call.work<FloatWork>(g, rows, output);
    work.x = patches;
    work.x_stride = K;
    work.K = K;
    call.isa.floats(work);
    scatter(call, output, rows, columns, first, y, base + g * columns * call.shape.positions(), turned);
  }
  return true;
}

// One channel in and one out for every group: no matrix to speak of, but channels side by side in the image. Sums of
// so many codes are exact in float32.
bool is_depthwise(const Call& call) {
  constexpr int64_t most_taps = 1 << 17;
  return call.shape.channels == call.shape.group && call.rows() == 1 && call.matrix.K <= most_taps;
}

// The codes as [taps][channels]; digit p of byte j of block b of a tile's first row is tap 4 P b + 4 p + j.
void depthwise_weights(const Call& call, float* weights) {
  const int planes = 8 / call.bits, mask = (1 << call.bits) - 1;
  for (int64_t c = 0; c < call.shape.channels; ++c) {
    const uint8_t* tile = call.matrix.codes + c * call.blocks() * kBlockBytes;
    for (int64_t t = 0; t < call.matrix.K; ++t) {
      const uint8_t byte = tile[t / (4 * planes) * kBlockBytes + t % 4];
      const int digit = byte >> (t / 4 % planes * call.bits) & mask;
      weights[t * call.shape.channels + c] = static_cast<float>(call.bits == 2 ? digit - 1 : 2 * digit - 1);
    }
  }
}

// Positions [first, first + rows) of one image whose channels are convolved by themselves; `s` scales the sums.
bool depthwise_block(const Call& call, const float* image, float s, const float* weights, const int64_t* taps,
                     int64_t first, int64_t rows, void* y, int64_t base) {
  const Shape& shape = call.shape;
  const int64_t channels = shape.channels;
  Scratch scratch(2 * Scratch::size<float>(rows * channels));
  if (!scratch) return false;
  float* sums = scratch.take<float>(rows * channels);
  float* turned = scratch.take<float>(rows * channels);
  for (int64_t done = 0; done < rows;) {  // outputs of one line of the image at a time
    const int64_t position = first + done, w = position % shape.out[2];
    const int64_t h = position / shape.out[2] % shape.out[1], d = position / (shape.out[1] * shape.out[2]);
    const int64_t line = d * shape.stride[0] * shape.padded[1] + h * shape.stride[1];
    DepthwiseWork work{};
    work.image = image + (line * shape.padded[2] + w * shape.stride[2]) * channels;
    work.taps = taps;
    work.weights = weights;
    work.count = call.matrix.K;
    work.channels = channels;
    work.positions = at_most(shape.out[2] - w, rows - done);
    work.step = shape.stride[2] * channels;
    work.sums = sums + done * channels;
    call.isa.depthwise(work);
    done += work.positions;
  }
  const float* scale = call.matrix.scale;
  const float* bias = call.matrix.bias;
  for (int64_t m = 0; m < rows; ++m) {
    float* sum = sums + m * channels;
    for (int64_t c = 0; c < channels; ++c) sum[c] = sum[c] * (s * scale[c]) + bias[c];
  }
  scatter(call, sums, rows, channels, first, y, base, turned);
  return true;
}

// How far each tap is from the first, in an image.
void tap_offsets(const Shape& s, int64_t* taps) {
  for (int64_t i = 0; i < s.kernel[0]; ++i)
    for (int64_t j = 0; j < s.kernel[1]; ++j)
      for (int64_t k = 0; k < s.kernel[2]; ++k) {
        const int64_t row = i * s.dilation[0] * s.padded[1] + j * s.dilation[1];
        *taps++ = (row * s.padded[2] + k * s.dilation[2]) * s.channels;
      }
}

// All samples, as many at a time as kImageBytes holds, as images of T: `prepare(sample, image)` makes one and returns
// its scale, 0 if memory is short; `multiply(image, scale, first, rows, base)` computes a block of positions.
template <class T, class Prepare, class Multiply>
bool convolve(const Call& call, int64_t batch, const hybridkit_parallel* parallel, const Prepare& prepare,
              const Multiply& multiply) {
  const int64_t image = round_up(call.shape.image() + kPiece, 64), positions = call.shape.positions();
  const int64_t at_a_time = at_least(at_most(kImageBytes / (image * static_cast<int64_t>(sizeof(T))), batch), 1);
  Scratch scratch(Scratch::size<T>(at_a_time * image) + Scratch::size<float>(at_a_time));
  if (!scratch) return false;
  T* images = scratch.take<T>(at_a_time * image);
  float* scales = scratch.take<float>(at_a_time);
  std::atomic<bool> complete{true};
  const int64_t blocks = divide_up(positions, call.block);
  for (int64_t first = 0; first < batch; first += at_a_time) {
    const int64_t samples = at_most(at_a_time, batch - first);
    for_each_task(parallel, samples, [&](int64_t i) {
      scales[i] = prepare(first + i, images + i * image);
      if (scales[i] == 0) complete = false;
    });
    if (!complete) return false;
    for_each_task(parallel, samples * blocks, [&](int64_t task) {
      const int64_t i = task / blocks, start = task % blocks * call.block;
      const int64_t rows = at_most(call.block, positions - start), base = (first + i) * call.matrix.N * positions;
      if (!multiply(images + i * image, scales[i], start, rows, base)) complete = false;
    });
    if (!complete) return false;
  }
  return true;
}

bool convolve_int8(const Call& call, const void* x, int64_t batch, void* y, const hybridkit_parallel* parallel) {
  return convolve<int8_t>(
      call, batch, parallel,
      [&](int64_t sample, int8_t* image) { return quantize_sample(call, x, sample, image); },
      [&](const int8_t* image, float s, int64_t first, int64_t rows, int64_t base) {
        return int8_block(call, image, s, first, rows, y, base);
      });
}

bool convolve_floats(const Call& call, const void* x, int64_t batch, void* y, const hybridkit_parallel* parallel) {
  return convolve<float>(
      call, batch, parallel,
      [&](int64_t sample, float* image) { return float_sample(call, x, sample, image) ? 1.0f : 0.0f; },
      [&](const float* image, float, int64_t first, int64_t rows, int64_t base) {
        return float_block(call, image, first, rows, y, base);
      });
}

bool convolve_depthwise(const Call& call, bool int8, const void* x, int64_t batch, void* y,
                        const hybridkit_parallel* parallel) {
  Scratch scratch(Scratch::size<float>(call.matrix.N * call.matrix.K) + Scratch::size<int64_t>(call.matrix.K));
  if (!scratch) return false;
  float* weights = scratch.take<float>(call.matrix.N * call.matrix.K);
  int64_t* taps = scratch.take<int64_t>(call.matrix.K);
  depthwise_weights(call, weights);
  tap_offsets(call.shape, taps);
  return convolve<float>(
      call, batch, parallel,
      [&](int64_t sample, float* image) {
        if (int8) return quantize_sample(call, x, sample, image);
        return float_sample(call, x, sample, image) ? 1.0f : 0.0f;
      },
      [&](const float* image, float s, int64_t first, int64_t rows, int64_t base) {
        return depthwise_block(call, image, s, weights, taps, first, rows, y, base);
      });
}

// What is wrong with one axis, or NULL and the padded and the output's size.
const char* problem_with_axis(const hybridkit_geometry& g, int axis, int64_t* padded, int64_t* out) {
  constexpr int64_t most = HYBRIDKIT_MAX_SIZE;
  if (!between(g.kernel[axis], 1, HYBRIDKIT_MAX_K)) return "a kernel's size must be from 1 to 4194304";
  if (!between(g.stride[axis], 1, most) || !between(g.dilation[axis], 1, most)) {
    return "strides and dilations must be from 1 to 2147483647";
  }
  if (!between(g.size[axis], 0, most) || !between(g.pad_begin[axis], 0, most) || !between(g.pad_end[axis], 0, most)) {
    return "sizes and pads must be from 0 to 2147483647";
  }
  const int64_t extent = g.dilation[axis] * (g.kernel[axis] - 1) + 1;
  *padded = g.size[axis] + g.pad_begin[axis] + g.pad_end[axis];
  if (*padded < extent) return "the kernel is larger than the padded input";
  *out = (*padded - extent) / g.stride[axis] + 1;
  return nullptr;
}

// What is wrong with a convolution whose geometry, of `shape`, is right, or NULL.
const char* problem(const hybridkit_matrix& matrix, const Shape& shape, int32_t dtype, const void* x, int64_t batch,
                    const void* y) {
  const int64_t N = matrix.N, K = matrix.K;
  if (const char* wrong = problem_with_conv_sizes(matrix.codec, N, K, shape.group)) return wrong;
  const int64_t* kernel = shape.kernel;
  if (product({shape.channels / shape.group, kernel[0], kernel[1], kernel[2]}, HYBRIDKIT_MAX_K) != K) {
    return "K is not channels / group * kernel size";
  }
  const size_t bytes = hybridkit_conv_code_bytes(matrix.codec, N, K, shape.group);
  if (const char* wrong = problem_with_matrix(matrix, bytes, dtype)) return wrong;
  if (batch < 0) return "the batch is negative";
  const int64_t* in = shape.in;
  if (const char* wrong = problem_with_tensor(x, {batch, shape.channels, in[0], in[1], in[2]})) return wrong;
  return problem_with_tensor(y, {batch, N, shape.out[0], shape.out[1], shape.out[2]});
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

const char* hybridkit_conv_shape(const hybridkit_geometry* geometry, int64_t N, int64_t out_size[3]) {
  constexpr int64_t most = HYBRIDKIT_MAX_SIZE, times = 8;
  const hybridkit_geometry& g = *geometry;
  if (g.axes < 1 || g.axes > 3) return "a convolution has 1 to 3 spatial axes";
  if (!between(g.channels, 1, most) || !between(N, 1, most)) return "channels must be from 1 to 2147483647";
  if (g.group < 1 || g.channels % g.group != 0) return "channels are not a multiple of group";
  if (N % g.group != 0) return "output channels are not a multiple of group";
  int64_t padded[3] = {1, 1, 1}, in[3] = {1, 1, 1};
  for (int axis = 0; axis < g.axes; ++axis) {
    if (const char* wrong = problem_with_axis(g, axis, &padded[axis], &out_size[axis])) return wrong;
    in[axis] = g.size[axis];
  }
  const int64_t pixels = product({in[0], in[1], in[2]}, kMostNumbers);
  const int64_t image = product({g.channels, padded[0], padded[1], padded[2]}, kMostNumbers);
  if (pixels < 0 || image < 0) return "the padded input is larger than any memory";
  if (image / g.channels > at_least(HYBRIDKIT_MAX_PADDED, at_most(pixels, kMostNumbers / times) * times)) {
    return "the padding makes the input too large";
  }
  return nullptr;
}

const char* hybridkit_conv(const hybridkit_matrix* matrix, const hybridkit_geometry* geometry, int32_t dtype,
                           const void* x, int64_t batch, void* y, const hybridkit_parallel* parallel) {
  int64_t out_size[3];
  if (const char* wrong = hybridkit_conv_shape(geometry, matrix->N, out_size)) return wrong;
  const Shape shape = shape_of(*geometry, out_size);
  if (const char* wrong = problem(*matrix, shape, dtype, x, batch, y)) return wrong;
  if (batch == 0) return nullptr;
  const bool int8 = matrix->activations == HYBRIDKIT_INT8;
  const Isa& chosen = isa();
  const int64_t rows = at_most(shape.positions(), kBlockRows);
  const int bits = bits_of(matrix->codec);
  const int64_t least = at_most(chosen.panel_rows, rows), padded = blocks_of(bits, matrix->K) * block_columns(bits);
  const Panels panels = int8 ? panels_of(chosen, false, rows, padded) : Panels{least, least, 0};
  // Large blocks share the unpacked weights; small ones give every thread something to do.
  const int64_t wanted = divide_up(batch * shape.positions(), kLeastTasks);
  const int64_t block = at_most(at_least(round_up(wanted, panels.step), panels.step), kBlockRows / panels.step * panels.step);
  const Call call{chosen, *matrix, shape, dtype, bits, panels, block};
  const bool done = is_depthwise(call) ? convolve_depthwise(call, int8, x, batch, y, parallel)
                    : int8             ? convolve_int8(call, x, batch, y, parallel)
                                       : convolve_floats(call, x, batch, y, parallel);
  return done ? nullptr : kOutOfMemory;
}

}  // extern "C"
