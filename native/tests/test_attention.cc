// Attention under every instruction set against its definition.
#include "attentions.h"

namespace {

using namespace products;
using attentions::Call;
using attentions::Sizes;

void check_case(test::Random& random, const Sizes& sizes) {
  Call call(random, sizes, random.between(0, 9));
  const auto host = random_host(random);
  const auto count = static_cast<int64_t>(call.expected.size());
  for_every_isa([&](const char* isa) {
    Output y(HYBRIDKIT_F32, count), alone(HYBRIDKIT_F32, count);
    const char* error = call.run(host, y.memory.data());
    std::string first;
    const int64_t wrong =
        reference::mismatches(call.expected, HYBRIDKIT_FLOAT, HYBRIDKIT_F32, y.memory.data(), &first);
    CHECK(error == nullptr && wrong == 0 && y.guard_holds() && call.cache_is_right(),
          "%s %lld x %lld tokens behind %lld, %lld of %lld heads of %lld, window %lld: %s, %lld wrong, %s", isa,
          static_cast<long long>(sizes.batch), static_cast<long long>(sizes.tokens),
          static_cast<long long>(sizes.past[0]), static_cast<long long>(sizes.kv_heads),
          static_cast<long long>(sizes.heads), static_cast<long long>(sizes.head_size),
          static_cast<long long>(sizes.window), error ? error : "no error", static_cast<long long>(wrong), first.c_str());
    CHECK(call.run(nullptr, alone.memory.data()) == nullptr && alone.memory == y.memory, "%s: threads show", isa);
  });
}

Sizes random_sizes(test::Random& random, int64_t most_tokens, int64_t most_past) {
  Sizes sizes{};
  sizes.batch = random.between(1, 2);
  sizes.tokens = random.between(1, most_tokens);
  sizes.kv_heads = random.between(1, 3);
  sizes.heads = sizes.kv_heads * random.between(1, 5);
  sizes.head_size = random.one_of<int64_t>({1, 3, 8, 16, 24, 40, 64, 80, 128});
  sizes.window = random.chance(60) ? -1 : random.between(1, 90);
  sizes.softcap = random.chance(80) ? 0.0f : 5.0f;
  sizes.shared = random.chance(50);
  const int64_t past = random.chance(25) ? 0 : random.between(1, most_past);
  for (int64_t i = 0; i < sizes.batch; ++i) sizes.past.push_back(past == 0 ? 0 : random.between(1, past));
  return sizes;
}

TEST(attention_of_one_token) {
  test::Random random(61);
  for (int i = 0; i < 40 * test::cases(); ++i) check_case(random, random_sizes(random, 1, random.one_of({5, 70, 700})));
}

TEST(attention_of_many_tokens) {
  test::Random random(62);
  for (int i = 0; i < 20 * test::cases(); ++i) check_case(random, random_sizes(random, random.one_of({8, 70, 150}), 100));
}

TEST(attention_gives_no_number_for_none) {
  test::Random random(63);
  Sizes sizes{1, 3, 2, 1, 16, -1, 0.0f, false, {70}};
  Call call(random, sizes, 0);
  std::vector<float> queries(call.call.queries, call.call.queries + 3 * 2 * 16);
  queries[16] = std::numeric_limits<float>::quiet_NaN();  // the second head of the first token
  call.call.queries = queries.data();
  for_every_isa([&](const char* isa) {
    Output y(HYBRIDKIT_F32, 3 * 2 * 16);
    CHECK(call.run(nullptr, y.memory.data()) == nullptr, "%s", isa);
    const std::vector<float> found = reference::values_of(HYBRIDKIT_F32, y.memory.data(), 3 * 2 * 16);
    for (int64_t i = 0; i < 3 * 2 * 16; ++i) CHECK(std::isnan(found[i]) == (i / 16 == 1), "%s [%lld]", isa, static_cast<long long>(i));
  });
}

TEST(attention_of_no_tokens) {  // which leaves the past as it is
  test::Random random(65);
  for (const bool shared : {true, false}) {
    Sizes sizes{2, 0, 2, 1, 8, -1, 0.0f, shared, {5, 3}};
    Call call(random, sizes, 2);
    for_every_isa([&](const char* isa) {
      Output y(HYBRIDKIT_F32, 0);
      CHECK(call.run(nullptr, y.memory.data()) == nullptr && y.guard_holds() && call.cache_is_right(), "%s", isa);
    });
    call.call.last = nullptr;
    CHECK(call.run(nullptr, nullptr) != nullptr, "no places");
  }
}

TEST(attention_takes_large_scores) {  // whose e^score no float holds
  test::Random random(64);
  Sizes sizes{1, 2, 1, 1, 8, -1, 0.0f, false, {300}};
  Call call(random, sizes, 0);
  call.call.scale = 300.0f;
  for (auto& e : call.expected = reference::attention(call.call, sizes.past)) e.slack *= 4;
  for_every_isa([&](const char* isa) {
    Output y(HYBRIDKIT_F32, 16);
    CHECK(call.run(nullptr, y.memory.data()) == nullptr, "%s", isa);
    std::string first;
    CHECK(reference::mismatches(call.expected, HYBRIDKIT_FLOAT, HYBRIDKIT_F32, y.memory.data(), &first) == 0, "%s %s", isa, first.c_str());
  });
}

}  // namespace
