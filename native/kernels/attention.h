// Attention to a cache of keys and values, one block of keys after the other under a running maximum (Milakov and
// Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135). Both products are one loop over registers: for
// more than a few rows keys are turned first. What a group of heads shares is turned and read once for all of them.
//
// V is a vector of floats: lanes, and how many rows and vectors of sums its registers hold.
#ifndef HYBRIDKIT_ATTENTION_H
#define HYBRIDKIT_ATTENTION_H

#include <math.h>
#include <string.h>

#include "isa.h"
#include "plain.h"

namespace hybridkit {
namespace {

// c [rows][vectors * lanes] (+)= a [rows][depth] times b [depth][vectors * lanes]
template <class V, int rows, int vectors>
inline void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, bool add,
                           float* c, int64_t c_stride) {
  typename V::Float sum[rows][vectors];
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < vectors; ++v) sum[m][v] = add ? V::load(c + m * c_stride + v * V::lanes) : V::all(0);
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    typename V::Float column[vectors];
    for (int v = 0; v < vectors; ++v) column[v] = V::load(b + v * V::lanes);
    for (int m = 0; m < rows; ++m) {
      const typename V::Float factor = V::all(a[m * a_stride + k]);
      for (int v = 0; v < vectors; ++v) sum[m][v] = V::add_product(sum[m][v], factor, column[v]);
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < vectors; ++v) V::store(c + m * c_stride + v * V::lanes, sum[m][v]);
}

template <class V, int vectors>
void multiply_columns(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                      bool add, float* c, int64_t c_stride) {
  static_assert(V::rows == 6, "the cases below");
  for (; rows > 0; rows -= V::rows, a += V::rows * a_stride, c += V::rows * c_stride) {
    switch (rows < V::rows ? rows : V::rows) {
      case 1: multiply_block<V, 1, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride); break;
      case 2: multiply_block<V, 2, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride); break;
      case 3: multiply_block<V, 3, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride); break;
      case 4: multiply_block<V, 4, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride); break;
      case 5: multiply_block<V, 5, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride); break;
      default: multiply_block<V, 6, vectors>(a, a_stride, b, b_stride, depth, add, c, c_stride);
    }
  }
}

// c [rows][columns] (+)= a [rows][depth] times b [depth][columns], whole vectors of columns
template <class V>
void multiply(int64_t rows, int64_t columns, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
              int64_t depth, bool add, float* c, int64_t c_stride) {
  int64_t n = 0;
  for (; n + V::vectors * V::lanes <= columns; n += V::vectors * V::lanes) {
    multiply_columns<V, V::vectors>(rows, a, a_stride, b + n, b_stride, depth, add, c + n, c_stride);
  }
  for (; n < columns; n += V::lanes) multiply_columns<V, 1>(rows, a, a_stride, b + n, b_stride, depth, add, c + n, c_stride);
}

// e^x for x <= 0, 0 where that is less than the smallest normal number: a power of two times a polynomial of what is
// left, which is at most ln 2 / 2 (the coefficients of Cephes' expf).
template <class V>
inline typename V::Float exponential(typename V::Float x) {
  x = V::most(V::all(-88.0f), x);  // x, where it is no number
  const typename V::Float whole = V::nearest(V::times(x, V::all(1.44269504088896341f)));
  x = V::add_product(x, whole, V::all(-0.693359375f));
  x = V::add_product(x, whole, V::all(2.12194440e-4f));
  typename V::Float p = V::all(1.9875691500e-4f);
  p = V::add_product(V::all(1.3981999507e-3f), p, x);
  p = V::add_product(V::all(8.3334519073e-3f), p, x);
  p = V::add_product(V::all(4.1665795894e-2f), p, x);
  p = V::add_product(V::all(1.6666665459e-1f), p, x);
  p = V::add_product(V::all(5.0000001201e-1f), p, x);
  p = V::add_product(V::all(1.0f), p, x);
  p = V::add_product(V::all(1.0f), p, x);
  return V::times(p, V::two_to(whole));
}

// One row: scores to e^(score - maximum), their sum and maximum. What was summed up before is scaled to the new maximum.
template <class V>
inline void soften(float* scores, int64_t columns, float& maximum, float& total, float* sums, int64_t width) {
  typename V::Float most = V::load(scores);
  for (int64_t n = V::lanes; n < columns; n += V::lanes) most = V::most(most, V::load(scores + n));
  const float before = maximum, largest = V::largest(most);
  maximum = largest > before ? largest : before;
  const typename V::Float less = V::all(-maximum);
  typename V::Float sum = V::all(0);
  for (int64_t n = 0; n < columns; n += V::lanes) {
    const typename V::Float share = exponential<V>(V::plus(V::load(scores + n), less));
    V::store(scores + n, share);
    sum = V::plus(sum, share);
  }
  if (maximum != before) {
    const float factor = expf(before - maximum);
    total *= factor;
    for (int64_t n = 0; n < width; n += V::lanes) V::store(sums + n, V::times(V::load(sums + n), V::all(factor)));
  }
  total += V::sum(sum);
}

// One row of scores: those of V::lanes keys, of which `some` are there. Sizes that are constants make addresses ones.
template <class V, int fixed_size>
inline typename V::Float scores_of(const float* query, const float* keys, int64_t some, int64_t given_size) {
  const int64_t size = fixed_size > 0 ? fixed_size : given_size;
  typename V::Float sums[V::lanes];
  for (int j = 0; j < V::lanes; ++j) sums[j] = V::all(0);
  for (int64_t d = 0; d < size; d += V::lanes) {
    const typename V::Float part = V::load(query + d);
    for (int j = 0; j < V::lanes; ++j) {
      sums[j] = V::add_product(sums[j], part, V::load(keys + (fixed_size > 0 || j < some ? j : 0) * size + d));
    }
  }
  return V::sums_of(sums);
}

// scores [rows][kKeyBlock] = queries [rows][size] times `count` keys [size], as sums along the keys as they lie: for a few
// rows, for which turning keys would cost more than multiplying them. The keys that follow and the values of these are on
// their way to the cache meanwhile.
template <class V>
void score_as_they_lie(int64_t rows, const float* queries, const float* keys, const float* values, int64_t size,
                       int64_t count, float* scores) {
  constexpr int64_t line = 64 / sizeof(float);
  for (int64_t first = 0; first < count; first += V::lanes) {
    const int64_t some = count - first < V::lanes ? count - first : V::lanes;
    for (int64_t at = first * size; at < (first + some) * size; at += line) {
      __builtin_prefetch(keys + kKeyBlock * size + at);
      __builtin_prefetch(values + at);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float *query = queries + r * size, *from = keys + first * size;
      float* to = scores + r * kKeyBlock + first;
      if (some == V::lanes && size == 64) V::store(to, scores_of<V, 64>(query, from, some, size));
      else if (some == V::lanes && size == 128) V::store(to, scores_of<V, 128>(query, from, some, size));
      else V::store(to, scores_of<V, 0>(query, from, some, size));
    }
  }
}

template <class V>
void attend_with(const AttentionWork& work) {
  const int64_t size = work.head_size, width = padded_head(size), window = work.window;
  float* turned = work.scratch;                 // [size][kKeyBlock]
  float* values = turned + size * kKeyBlock;    // [kKeyBlock][width]
  float* scores = values + kKeyBlock * width;   // [rows][kKeyBlock]
  for (int64_t r = 0; r < work.rows; ++r) work.maximum[r] = -INFINITY, work.total[r] = 0;
  memset(work.sums, 0, static_cast<size_t>(work.rows * width) * sizeof(float));
  for (int64_t block = work.from; block < work.to; block += kKeyBlock) {
    const int64_t count = work.to - block < kKeyBlock ? work.to - block : kKeyBlock;
    const int64_t columns = (count + V::lanes - 1) / V::lanes * V::lanes;
    // tokens that see any of these keys
    const int64_t tokens = work.rows / work.heads, behind = block - work.place, beyond = behind + count - 1 + window;
    const int64_t first = (behind > 0 ? behind : 0) * work.heads;
    const int64_t end = (beyond < tokens ? beyond : tokens) * work.heads;
    if (first >= end) continue;
    const float *queries = work.queries + first * size, *keys = work.keys + block * size;
    if (end - first <= V::unturned && size % V::lanes == 0) {
      score_as_they_lie<V>(end - first, queries, keys, work.values + block * size, size, count, scores);
    } else {
      transpose(keys, size, count, size, turned, kKeyBlock);
      multiply<V>(end - first, columns, queries, size, turned, kKeyBlock, size, false, scores, kKeyBlock);
    }
    for (int64_t r = first; r < end; ++r) {
      float* row = scores + (r - first) * kKeyBlock;
      const int64_t place = work.place + r / work.heads - block;  // of the row's token, among these keys
      const int64_t low = place - window + 1, high = place + 1 < count ? place + 1 : count;
      if (work.softcap > 0)
        for (int64_t n = 0; n < count; ++n) row[n] = work.softcap * tanhf(row[n] / work.softcap);
      for (int64_t n = 0; n < low; ++n) row[n] = -INFINITY;
      for (int64_t n = high; n < columns; ++n) row[n] = -INFINITY;
      soften<V>(row, columns, work.maximum[r], work.total[r], work.sums + r * width, width);
    }
    const float* from = work.values + block * size;
    if (size < width) {
      for (int64_t k = 0; k < count; ++k) {
        memcpy(values + k * width, from + k * size, static_cast<size_t>(size) * sizeof(float));
        for (int64_t d = size; d < width; ++d) values[k * width + d] = 0;
      }
      from = values;
    }
    multiply<V>(end - first, width, scores, kKeyBlock, from, width, count, true, work.sums + first * width, width);
  }
}

}  // namespace
}  // namespace hybridkit
#endif
