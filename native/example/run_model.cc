// Runs an exported model with the native operators, from C++ and without ONNX Runtime's headers:
//
//   run_model libonnxruntime.so libhybridkit.so model.onnx 2 64 < input.f32
//
// reads one float32 input of shape [2, 64] and prints the first output, one row of the last axis on a line.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace {

using namespace hybridkit::ort;

const OrtApi* load_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  using GetBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) throw std::runtime_error(std::string(path) + " is not ONNX Runtime");
  const OrtApi* api = get_base()->GetApi(kApiVersion);
  if (api == nullptr) throw std::runtime_error("ONNX Runtime is older than 1.17");
  return api;
}

std::vector<float> read_input(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  std::vector<float> input(count);
  if (std::fread(input.data(), sizeof(float), count, stdin) != count)
    throw std::runtime_error("the input is too short: " + std::to_string(count) + " float32 are needed");
  return input;
}

void print(const OrtApi* api, OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  size_t rank = 0;
  check(api, GetTensorTypeAndShape(api, value, &info));
  check(api, GetDimensionsCount(api, info, &rank));
  std::vector<int64_t> shape(rank);
  check(api, GetDimensions(api, info, shape.data(), rank));
  ReleaseTensorTypeAndShapeInfo(api, info);
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  void* data = nullptr;
  check(api, GetTensorMutableData(api, value, &data));
  const size_t width = rank > 0 ? static_cast<size_t>(shape.back()) : 1;
  for (size_t i = 0; i < count; i++)
    std::printf("%.9g%c", static_cast<const float*>(data)[i], (i + 1) % width == 0 ? '\n' : ' ');
}

void run(const char* runtime, const char* operators, const char* model, std::vector<int64_t> shape) {
  const OrtApi* api = load_runtime(runtime);
  OrtEnv* env = nullptr;
  check(api, CreateEnv(api, kWarning, "run_model", &env));
  OrtSessionOptions* options = nullptr;
  check(api, CreateSessionOptions(api, &options));
  check(api, SetIntraOpNumThreads(api, options, 2));
  void* handle = nullptr;  // stays loaded
  check(api, RegisterCustomOpsLibrary(api, options, operators, &handle));
  OrtSession* session = nullptr;
  check(api, CreateSession(api, env, model, options, &session));

  OrtAllocator* allocator = nullptr;
  char *input_name = nullptr, *output_name = nullptr;
  check(api, GetAllocatorWithDefaultOptions(api, &allocator));
  check(api, SessionGetInputName(api, session, 0, allocator, &input_name));
  check(api, SessionGetOutputName(api, session, 0, allocator, &output_name));

  std::vector<float> data = read_input(shape);
  OrtMemoryInfo* memory = nullptr;
  OrtValue *input = nullptr, *output = nullptr;
  check(api, CreateCpuMemoryInfo(api, kArena, kMemDefault, &memory));
  check(api, CreateTensorWithDataAsOrtValue(api, memory, data.data(), data.size() * sizeof(float),
                                            shape.data(), shape.size(), kFloat32, &input));
  check(api, Run(api, session, nullptr, &input_name, &input, 1, &output_name, 1, &output));
  print(api, output);

  ReleaseValue(api, output);
  ReleaseValue(api, input);
  ReleaseMemoryInfo(api, memory);
  check(api, AllocatorFree(api, allocator, input_name));
  check(api, AllocatorFree(api, allocator, output_name));
  ReleaseSession(api, session);
  ReleaseSessionOptions(api, options);
  ReleaseEnv(api, env);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s libonnxruntime.so libhybridkit.so model.onnx SIZE... < input.f32\n",
                 argv[0]);
    return 2;
  }
  try {
    std::vector<int64_t> shape;
    for (int i = 4; i < argc; i++) shape.push_back(std::atoll(argv[i]));
    run(argv[1], argv[2], argv[3], shape);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
