// Attention with a cache: new keys and values to their place, and then tasks, each some rows of queries of one head of
// the cache. A few rows, as in finding a token, are cut along the keys, always at the same ones, so that neither threads
// nor tasks show in the result.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "door.h"
#include "work.h"

namespace hybridkit {
namespace {

constexpr int64_t kTaskRows = 96;   // of queries
constexpr int64_t kTaskKeys = 256;  // where rows alone are too few tasks

// Tokens of a sample in the cache before the new ones. Where all there are is new, samples begin together, and those
// that are shorter are filled up behind their end.
int64_t past_of(const hybridkit_attention& a, int64_t sample) {
  return a.total == a.tokens ? 0 : int64_t{a.last[sample]} + 1 - a.tokens;
}

// What is wrong with sizes and pointers, or NULL.
const char* problem_with(const hybridkit_attention& a) {
  if (!between(a.heads, 1, HYBRIDKIT_MAX_HEADS) || !between(a.kv_heads, 1, a.heads) || a.heads % a.kv_heads != 0)
    return "heads must be a multiple of kv_heads, from 1 to 65536";
  if (!between(a.head_size, 1, HYBRIDKIT_MAX_HEADS)) return "head_size must be from 1 to 65536";
  if (!between(a.batch, 0, HYBRIDKIT_MAX_SIZE) || !between(a.tokens, 0, HYBRIDKIT_MAX_SIZE) ||
      !between(a.total, a.tokens, HYBRIDKIT_MAX_SIZE) || !between(a.past_room, 0, HYBRIDKIT_MAX_SIZE) ||
      !between(a.room, a.total, HYBRIDKIT_MAX_SIZE))
    return "batch, tokens or room is out of range, or there is less room than tokens";
  if (a.window != -1 && !between(a.window, 1, HYBRIDKIT_MAX_SIZE)) return "window must be -1 or at least 1";
  if (!std::isfinite(a.scale) || !std::isfinite(a.softcap) || a.softcap < 0)
    return "scale must be finite, and softcap 0 or more";
  const int64_t queries = product({a.batch, a.tokens, a.heads, a.head_size}, kMostNumbers);
  const int64_t cache = product({a.batch, std::max(a.room, a.past_room), a.kv_heads, a.head_size}, kMostNumbers);
  if (queries < 0 || cache < 0) return "queries or the cache are larger than any memory";
  if (queries > 0 && (a.queries == nullptr || a.keys == nullptr || a.values == nullptr || a.y == nullptr))
    return "an input or the output is a null pointer";
  if (a.batch > 0 && a.last == nullptr) return "last is a null pointer";
  if (cache > 0 && (a.present_keys == nullptr || a.present_values == nullptr)) return "the cache is a null pointer";
  const bool in_place = a.past_keys == a.present_keys || a.past_values == a.present_values;
  if (cache > 0 && in_place && a.past_room != a.room) return "memory of one place has two sizes";
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const int64_t past = past_of(a, sample);
    if (past < 0 || past > a.past_room || past + a.tokens > a.total) return "last does not fit the past and the new tokens";
    if (past > 0 && (a.past_keys == nullptr || a.past_values == nullptr)) return "the past is a null pointer";
  }
  return nullptr;
}

// The keys, or values, of one head of one sample to where they stay: those of the past, unless they lie there, and the
// new ones.
void append(const hybridkit_attention& a, int64_t sample, int64_t head, const float* past, const float* added, float* present) {
  const int64_t size = a.head_size, known = past_of(a, sample), place = sample * a.kv_heads + head;
  float* to = present + place * a.room * size;
  const auto bytes = [size](int64_t tokens) { return static_cast<size_t>(tokens * size) * sizeof(float); };
  if (past != present) {
    if (known > 0) std::memcpy(to, past + place * a.past_room * size, bytes(known));
    std::memset(to + (known + a.tokens) * size, 0, bytes(a.room - known - a.tokens));
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    const float* from = added + ((sample * a.tokens + t) * a.kv_heads + head) * size;
    std::memcpy(to + (known + t) * size, from, bytes(1));
  }
}

// How the queries of a head of the cache are cut: `tokens` to a task, and their keys into `parts` at most.
struct Cut {
  int64_t tokens, blocks, parts;
};

Cut cut_of(const hybridkit_attention& a) {
  const int64_t tokens = at_least(kTaskRows / (a.heads / a.kv_heads), 1);
  if (a.tokens > tokens) return {tokens, divide_up(a.tokens, tokens), 1};
  return {a.tokens, 1, divide_up(a.total, kTaskKeys)};
}

// What a part of the keys gives: maximum and total of each row, and its sums.
struct Part {
  float *maximum, *total, *sums;
  Part(float* memory, int64_t rows) : maximum(memory), total(memory + rows), sums(memory + 2 * rows) {}
  static int64_t floats(int64_t rows, int64_t size) { return round_up(rows * (padded_head(size) + 2), 16); }
};

// The weighted mean of `count` parts to y, `heads` rows for each token.
void join(float* parts, int64_t count, int64_t rows, int64_t heads, int64_t size, float* y, int64_t token_stride) {
  const int64_t step = Part::floats(rows, size);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = y + r / heads * token_stride + r % heads * size;
    float maximum = -INFINITY, total = 0;
    for (int64_t p = 0; p < count; ++p) maximum = std::max(maximum, Part(parts + p * step, rows).maximum[r]);
    std::fill(to, to + size, 0.0f);
    for (int64_t p = 0; p < count; ++p) {
      const Part part(parts + p * step, rows);
      const float share = std::exp(part.maximum[r] - maximum);
      const float* sums = part.sums + r * padded_head(size);
      total += share * part.total[r];
      for (int64_t d = 0; d < size; ++d) to[d] += share * sums[d];
    }
    const float less = 1.0f / total;
    for (int64_t d = 0; d < size; ++d) to[d] *= less;
  }
}

class Attention {
 public:
  Attention(const hybridkit_attention& a, float* parts)
      : a_(a), cut_(cut_of(a)), heads_(a.heads / a.kv_heads), parts_(parts) {}

  static int64_t shared_floats(const hybridkit_attention& a) {
    const Cut cut = cut_of(a);
    return cut.parts == 1 ? 0 : a.batch * a.kv_heads * cut.parts * Part::floats(a.heads / a.kv_heads * a.tokens, a.head_size);
  }

  bool run(const hybridkit_parallel* parallel) {
    const int64_t caches = a_.batch * a_.kv_heads;
    std::atomic<bool> enough{true};
    for_each_task(a_.tokens * a_.head_size < kAppended ? nullptr : parallel, caches, [&](int64_t i) {
      append(a_, i / a_.kv_heads, i % a_.kv_heads, a_.past_keys, a_.keys, a_.present_keys);
      append(a_, i / a_.kv_heads, i % a_.kv_heads, a_.past_values, a_.values, a_.present_values);
    });
    const int64_t of_cache = cut_.blocks * cut_.parts;
    for_each_task(parallel, caches * of_cache, [&](int64_t i) {
      const int64_t block = i % of_cache / cut_.parts;
      if (!attend(i / of_cache, block, i % cut_.parts)) enough.store(false, std::memory_order_relaxed);
    });
    if (cut_.parts > 1) {
      const int64_t rows = heads_ * a_.tokens, step = cut_.parts * Part::floats(rows, a_.head_size);
      for (int64_t i = 0; i < caches; ++i) {
        join(parts_ + i * step, cut_.parts, rows, heads_, a_.head_size, y_of(i, 0), a_.heads * a_.head_size);
      }
    }
    return enough;
  }

 private:
  float* y_of(int64_t cache, int64_t token) const { return a_.y + at(cache, token); }
  int64_t at(int64_t cache, int64_t token) const {  // of the first query that a head of the cache answers
    const int64_t sample = cache / a_.kv_heads, head = cache % a_.kv_heads;
    return ((sample * a_.tokens + token) * a_.heads + head * heads_) * a_.head_size;
  }

  bool attend(int64_t cache, int64_t block, int64_t part_number) const {
    const int64_t first = block * cut_.tokens, tokens = at_most(cut_.tokens, a_.tokens - first), size = a_.head_size;
    const int64_t rows = tokens * heads_, place = past_of(a_, cache / a_.kv_heads) + first;
    Scratch scratch(Scratch::size<float>(rows * size) + Scratch::size<float>(attention_scratch(rows, size)) +
                    Scratch::size<float>(Part::floats(rows, size)));
    if (!scratch) return false;
    float* queries = scratch.take<float>(rows * size);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = a_.queries + at(cache, first + t);
      float* to = queries + t * heads_ * size;
      for (int64_t i = 0; i < heads_ * size; ++i) to[i] = from[i] * a_.scale;
    }
    AttentionWork work{};
    work.queries = queries, work.rows = rows, work.heads = heads_, work.head_size = size;
    work.keys = a_.present_keys + cache * a_.room * size, work.values = a_.present_values + cache * a_.room * size;
    work.place = place, work.window = a_.window < 0 ? int64_t{HYBRIDKIT_MAX_SIZE} : a_.window, work.softcap = a_.softcap;
    work.from = at_least(place - work.window + 1, 0), work.to = place + tokens;
    if (cut_.parts > 1) {
      work.from = at_least(work.from, part_number * kTaskKeys);
      work.to = at_most(work.to, (part_number + 1) * kTaskKeys);
    }
    work.scratch = scratch.take<float>(attention_scratch(rows, size));
    float* own = scratch.take<float>(Part::floats(rows, size));
    const Part part(cut_.parts > 1 ? parts_ + (cache * cut_.parts + part_number) * Part::floats(rows, size) : own, rows);
    work.maximum = part.maximum, work.total = part.total, work.sums = part.sums;
    isa().attend(work);
    if (cut_.parts == 1) join(own, 1, rows, heads_, size, y_of(cache, first), a_.heads * size);
    return true;
  }

  static constexpr int64_t kAppended = 16384;  // numbers of a head that are worth a task

  const hybridkit_attention& a_;
  const Cut cut_;
  const int64_t heads_;  // that share keys and values
  float* const parts_;
};

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" const char* hybridkit_attend(const hybridkit_attention* attention, const hybridkit_parallel* parallel) {
  if (const char* wrong = problem_with(*attention)) return wrong;
  const int64_t floats = Attention::shared_floats(*attention);
  Scratch scratch(Scratch::size<float>(floats));
  if (!scratch) return kOutOfMemory;
  return Attention(*attention, scratch.take<float>(floats)).run(parallel) ? nullptr : kOutOfMemory;
}
