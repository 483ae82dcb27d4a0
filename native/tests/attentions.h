// Attention with random contents, for the tests and the fuzz target.
#ifndef HYBRIDKIT_ATTENTIONS_H
#define HYBRIDKIT_ATTENTIONS_H

#include <algorithm>

#include "products.h"

namespace attentions {

struct Sizes {
  int64_t batch, tokens, heads, kv_heads, head_size, window;
  float softcap;
  bool shared;                // past and present are the same memory
  std::vector<int64_t> past;  // tokens of each sample
};

// Everything that a call needs, and what it must leave behind.
class Call {
 public:
  Call(test::Random& random, const Sizes& sizes, int64_t spare) : sizes_(sizes) {
    const int64_t longest = sizes.past.empty() ? 0 : *std::max_element(sizes.past.begin(), sizes.past.end());
    const int64_t total = longest + sizes.tokens, cached = sizes.batch * sizes.kv_heads * sizes.head_size;
    call = {};
    call.batch = sizes.batch, call.tokens = sizes.tokens, call.total = total;
    call.heads = sizes.heads, call.kv_heads = sizes.kv_heads, call.head_size = sizes.head_size;
    call.room = total + spare, call.past_room = sizes.shared ? call.room : longest;
    call.window = sizes.window, call.softcap = sizes.softcap;
    call.scale = random.one_of({0.125f, 0.5f, 1.0f});
    for (const int64_t past : sizes.past) last_.push_back(static_cast<int32_t>(past + sizes.tokens - 1));
    queries_ = numbers(random, sizes.batch * sizes.tokens * sizes.heads * sizes.head_size);
    keys_ = numbers(random, cached * sizes.tokens);
    values_ = numbers(random, cached * sizes.tokens);
    past_keys_ = numbers(random, cached * call.past_room);
    past_values_ = numbers(random, cached * call.past_room);
    call.last = last_.data(), call.queries = queries_.data(), call.keys = keys_.data(), call.values = values_.data();
    call.past_keys = past_keys_.data(), call.past_values = past_values_.data();
    expected = reference::attention(call, sizes.past);
    present_keys_ = of_present(past_keys_, keys_), present_values_ = of_present(past_values_, values_);
  }

  // The call on memory of its own: an instruction set must not see what another one wrote.
  const char* run(const hybridkit_parallel* host, uint8_t* y) {
    found_keys_ = sizes_.shared ? past_keys_ : std::vector<float>(present_keys_.size(), -7.0f);
    found_values_ = sizes_.shared ? past_values_ : std::vector<float>(present_values_.size(), -7.0f);
    hybridkit_attention given = call;
    given.present_keys = found_keys_.data(), given.present_values = found_values_.data();
    if (sizes_.shared) given.past_keys = found_keys_.data(), given.past_values = found_values_.data();
    given.y = reinterpret_cast<float*>(y);
    return hybridkit_attend(&given, host);
  }
  bool cache_is_right() const { return found_keys_ == present_keys_ && found_values_ == present_values_; }

  hybridkit_attention call;
  std::vector<reference::Expected> expected;

 private:
  static std::vector<float> numbers(test::Random& random, int64_t count) {
    std::vector<float> x(static_cast<size_t>(count));
    for (float& value : x) value = random.real(2.0f);
    return x;
  }
  std::vector<float> of_present(const std::vector<float>& past, const std::vector<float>& added) const {
    const int64_t size = sizes_.head_size, heads = sizes_.batch * sizes_.kv_heads;
    std::vector<float> present(static_cast<size_t>(heads * call.room * size), 0.0f);
    if (sizes_.shared) present = past;
    for (int64_t i = 0; i < heads; ++i) {
      const int64_t known = sizes_.past[i / sizes_.kv_heads];
      for (int64_t t = 0; t < known + sizes_.tokens; ++t) {
        const int64_t token = (i / sizes_.kv_heads * sizes_.tokens + t - known) * sizes_.kv_heads + i % sizes_.kv_heads;
        const float* from = t < known ? past.data() + (i * call.past_room + t) * size : added.data() + token * size;
        std::copy(from, from + size, present.data() + (i * call.room + t) * size);
      }
    }
    return present;
  }

  Sizes sizes_;
  std::vector<int32_t> last_;
  std::vector<float> queries_, keys_, values_, past_keys_, past_values_;
  std::vector<float> present_keys_, present_values_, found_keys_, found_values_;
};

}  // namespace attentions

#endif
