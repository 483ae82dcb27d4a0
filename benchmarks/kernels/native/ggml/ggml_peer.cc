// ggml's TQ2_0 product as a peer, through its public interface: a graph of products of one x with several matrices.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"

namespace {

struct ContextDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
struct PoolDeleter {
  void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
};
using Context = std::unique_ptr<ggml_context, ContextDeleter>;
using Pool = std::unique_ptr<ggml_threadpool, PoolDeleter>;

Context make_context(size_t bytes) { return Context(ggml_init({bytes, nullptr, false})); }

struct Weights {
  Context context;
  std::vector<ggml_tensor*> copies;
};

struct Graph {
  Context context;
  Pool pool;
  ggml_cgraph* graph;
  ggml_cplan plan;
  std::vector<uint8_t> work;
};

void finish(Graph& g, int threads) {
  ggml_threadpool_params parameters = ggml_threadpool_params_default(threads);
  g.pool.reset(ggml_threadpool_new(&parameters));
  g.plan = ggml_graph_plan(g.graph, threads, g.pool.get());
  g.work.resize(g.plan.work_size);
  g.plan.work_data = g.work.data();
}

size_t graph_bytes(int64_t nodes) { return ggml_graph_overhead_custom(2 * nodes + 8, false) + (size_t{1} << 16); }

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// `count` matrices [N, K] in memory of their own; K is a multiple of 256.
API void* peer_weights(int64_t N, int64_t K, int64_t count) {
  ggml_cpu_init();
  const size_t one = ggml_row_size(GGML_TYPE_TQ2_0, K) * N;
  auto weights = std::make_unique<Weights>();
  weights->context = make_context((one + ggml_tensor_overhead() + 256) * count + (size_t{1} << 16));
  if (!weights->context) return nullptr;
  std::vector<float> values(N * K);
  std::minstd_rand random;
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 3) - 1);
  for (int64_t i = 0; i < count; ++i) {
    ggml_tensor* tensor = ggml_new_tensor_2d(weights->context.get(), GGML_TYPE_TQ2_0, K, N);
    if (i == 0) {
      ggml_quantize_chunk(GGML_TYPE_TQ2_0, values.data(), tensor->data, 0, N, K, nullptr);
    } else {
      std::memcpy(tensor->data, weights->copies[0]->data, one);
    }
    weights->copies.push_back(tensor);
  }
  return weights.release();
}

API void peer_free_weights(void* weights) { delete static_cast<Weights*>(weights); }

// The products of x [M, K] with all the weights.
API void* peer_products(void* given, int64_t M, int threads) {
  auto& weights = *static_cast<Weights*>(given);
  const int64_t nodes = static_cast<int64_t>(weights.copies.size());
  const int64_t K = weights.copies[0]->ne[0], N = weights.copies[0]->ne[1];
  auto g = std::make_unique<Graph>();
  const size_t outputs = nodes * (ggml_tensor_overhead() + M * N * sizeof(float) + 256);
  g->context = make_context(graph_bytes(nodes) + outputs + ggml_tensor_overhead() + M * K * sizeof(float) + 4096);
  if (!g->context) return nullptr;
  ggml_tensor* x = ggml_new_tensor_2d(g->context.get(), GGML_TYPE_F32, K, M);
  for (int64_t i = 0; i < M * K; ++i) static_cast<float*>(x->data)[i] = static_cast<float>(i % 4099) / 2048.0f - 1.0f;
  g->graph = ggml_new_graph_custom(g->context.get(), 2 * nodes + 8, false);
  for (ggml_tensor* weight : weights.copies) {
    ggml_build_forward_expand(g->graph, ggml_mul_mat(g->context.get(), weight, x));
  }
  finish(*g, threads);
  return g.release();
}

// A graph of `nodes` operations on one number: what ggml's own call costs.
API void* peer_nothing(int64_t nodes, int threads) {
  auto g = std::make_unique<Graph>();
  g->context = make_context(graph_bytes(nodes) + (nodes + 1) * (ggml_tensor_overhead() + 512));
  if (!g->context) return nullptr;
  ggml_tensor* x = ggml_new_tensor_1d(g->context.get(), GGML_TYPE_F32, 1);
  *static_cast<float*>(x->data) = 1.0f;
  g->graph = ggml_new_graph_custom(g->context.get(), 2 * nodes + 8, false);
  for (int64_t i = 0; i < nodes; ++i) ggml_build_forward_expand(g->graph, ggml_abs(g->context.get(), x));
  finish(*g, threads);
  return g.release();
}

API void peer_free_graph(void* graph) { delete static_cast<Graph*>(graph); }

// Nanoseconds of each of `calls` runs of the graph; 0 if one failed.
API int peer_run(void* graph, int64_t calls, double* nanoseconds) {
  auto& g = *static_cast<Graph*>(graph);
  for (int64_t i = 0; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (ggml_graph_compute(g.graph, &g.plan) != GGML_STATUS_SUCCESS) return 0;
    nanoseconds[i] = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
  }
  return 1;
}
