/* The part of ONNX Runtime's binary interface that we use.
 *
 * `OrtApi` is a table of functions to which every release appends; a slot, once given, keeps its meaning. The
 * table of version 17 is asked for, the oldest with parallel loops and shape inference for custom operators:
 * a newer one would keep older runtimes out. The tests run the slots below on the oldest and the newest
 * runtime.
 */
#ifndef HYBRIDKIT_ORT_ABI_H
#define HYBRIDKIT_ORT_ABI_H

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace hybridkit::ort {

constexpr uint32_t kApiVersion = 17;

// Opaque to us.
struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtAllocator;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;

struct OrtApi {
  const void* slots[1];  // as many as the version has
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the runtime is older than the version
  const char* (*GetVersionString)();
};

enum OrtErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum OrtOpAttrType : int { kAttributeInt = 1, kAttributeInts = 2 };
enum ElementType : int { kFloat32 = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
enum OrtLoggingLevel : int { kWarning = 2 };
enum OrtAllocatorType : int { kArena = 1 };
enum OrtMemType : int { kMemDefault = 0 };
enum Characteristic : int { kRequired = 0 };

/* What a custom operator tells the runtime about itself. Null functions are optional ones left out. */
struct OrtCustomOp {
  uint32_t version = kApiVersion;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*) = nullptr;
  const char* (*GetName)(const OrtCustomOp*) = nullptr;
  const char* (*GetExecutionProviderType)(const OrtCustomOp*) = nullptr;
  ElementType (*GetInputType)(const OrtCustomOp*, size_t index) = nullptr;
  size_t (*GetInputTypeCount)(const OrtCustomOp*) = nullptr;
  ElementType (*GetOutputType)(const OrtCustomOp*, size_t index) = nullptr;
  size_t (*GetOutputTypeCount)(const OrtCustomOp*) = nullptr;
  void (*KernelCompute)(void* kernel, OrtKernelContext*) = nullptr;
  void (*KernelDestroy)(void* kernel) = nullptr;
  Characteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index) = nullptr;
  Characteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index) = nullptr;
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index) = nullptr;
  int (*GetVariadicInputMinArity)(const OrtCustomOp*) = nullptr;
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*) = nullptr;
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*) = nullptr;
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel) = nullptr;
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*) = nullptr;
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*) = nullptr;
  int (*GetStartVersion)(const OrtCustomOp*) = nullptr;
  int (*GetEndVersion)(const OrtCustomOp*) = nullptr;
  const void* since_version_18[4] = {};
};
static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 208, "the runtime's OrtCustomOp has 26 words");

/* An operator all of whose inputs and outputs are there once, in the CPU's memory, in every version. */
inline void set_required(OrtCustomOp& op) {
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kMemDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
}

/* One function of the table: called as Name(api, arguments...). */
template <size_t index, typename Signature>
struct Slot;

template <size_t index, typename Result, typename... Arguments>
struct Slot<index, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(api->slots[index]))(arguments...);
  }
};

inline constexpr Slot<0, OrtStatus*(OrtErrorCode, const char* message)> CreateStatus{};
inline constexpr Slot<2, const char*(const OrtStatus*)> GetErrorMessage{};
inline constexpr Slot<93, void(OrtStatus*)> ReleaseStatus{};

inline constexpr Slot<26, OrtStatus*(const char* name, OrtCustomOpDomain**)> CreateCustomOpDomain{};
inline constexpr Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add{};
inline constexpr Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain{};

inline constexpr Slot<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)>
    AddSessionConfigEntry{};
inline constexpr Slot<237, OrtStatus*(const OrtSessionOptions*, const char* key, int* found)>
    HasSessionConfigEntry{};

inline constexpr Slot<51, OrtStatus*(OrtValue*, void** data)> GetTensorMutableData{};
inline constexpr Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape{};
inline constexpr Slot<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo** borrowed)>
    CastTypeInfoToTensorInfo{};
inline constexpr Slot<98, void(OrtTypeInfo*)> ReleaseTypeInfo{};

inline constexpr Slot<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)> CreateTensorTypeAndShapeInfo{};
inline constexpr Slot<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, ElementType)> SetTensorElementType{};
inline constexpr Slot<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)> SetDimensions{};
inline constexpr Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, ElementType*)> GetTensorElementType{};
inline constexpr Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> GetDimensionsCount{};
inline constexpr Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)> GetDimensions{};
inline constexpr Slot<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>
    GetSymbolicDimensions{};
inline constexpr Slot<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)>
    SetSymbolicDimensions{};
inline constexpr Slot<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo{};

inline constexpr Slot<85, OrtStatus*(const OrtKernelInfo*, const char* name, float*)>
    KernelInfoGetAttribute_float{};
inline constexpr Slot<86, OrtStatus*(const OrtKernelInfo*, const char* name, int64_t*)>
    KernelInfoGetAttribute_int64{};
inline constexpr Slot<163, OrtStatus*(const OrtKernelInfo*, const char* name, int64_t*, size_t* size)>
    KernelInfoGetAttributeArray_int64{};
inline constexpr Slot<234, OrtStatus*(const OrtKernelInfo*, size_t index, OrtTypeInfo**)>
    KernelInfo_GetInputTypeInfo{};
inline constexpr Slot<244, OrtStatus*(const OrtKernelInfo*, char* name, size_t* size)>
    KernelInfo_GetNodeName{};
inline constexpr Slot<249, OrtStatus*(const OrtKernelInfo*, size_t index, int* is_constant, const OrtValue**)>
    KernelInfoGetConstantInput_tensor{};

inline constexpr Slot<90, OrtStatus*(const OrtKernelContext*, size_t index, const OrtValue**)>
    KernelContext_GetInput{};
inline constexpr Slot<91, OrtStatus*(OrtKernelContext*, size_t index, const int64_t* shape, size_t rank,
                                     OrtValue**)>
    KernelContext_GetOutput{};
inline constexpr Slot<274, OrtStatus*(const OrtKernelContext*, void (*task)(void*, size_t), size_t total,
                                      size_t num_batch, void* state)>
    KernelContext_ParallelFor{};

// The runtime owns the shape that this gives: releasing it frees it twice.
inline constexpr Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t index,
                                      OrtTensorTypeAndShapeInfo** borrowed)>
    ShapeInferContext_GetInputTypeShape{};
inline constexpr Slot<269, OrtStatus*(const OrtShapeInferContext*, const char* name, const OrtOpAttr**)>
    ShapeInferContext_GetAttribute{};
inline constexpr Slot<270,
                      OrtStatus*(const OrtShapeInferContext*, size_t index, const OrtTensorTypeAndShapeInfo*)>
    ShapeInferContext_SetOutputTypeShape{};
inline constexpr Slot<272,
                      OrtStatus*(const OrtOpAttr*, OrtOpAttrType, void* data, size_t bytes, size_t* needed)>
    ReadOpAttr{};

// For programs that run a model (native/example).
inline constexpr Slot<3, OrtStatus*(OrtLoggingLevel, const char* name, OrtEnv**)> CreateEnv{};
inline constexpr Slot<92, void(OrtEnv*)> ReleaseEnv{};
inline constexpr Slot<10, OrtStatus*(OrtSessionOptions**)> CreateSessionOptions{};
inline constexpr Slot<100, void(OrtSessionOptions*)> ReleaseSessionOptions{};
inline constexpr Slot<24, OrtStatus*(OrtSessionOptions*, int threads)> SetIntraOpNumThreads{};
inline constexpr Slot<29, OrtStatus*(OrtSessionOptions*, const char* path, void** library)>
    RegisterCustomOpsLibrary{};
inline constexpr Slot<7, OrtStatus*(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**)>
    CreateSession{};
inline constexpr Slot<95, void(OrtSession*)> ReleaseSession{};
inline constexpr Slot<36, OrtStatus*(const OrtSession*, size_t index, OrtAllocator*, char** name)>
    SessionGetInputName{};
inline constexpr Slot<37, OrtStatus*(const OrtSession*, size_t index, OrtAllocator*, char** name)>
    SessionGetOutputName{};
inline constexpr Slot<78, OrtStatus*(OrtAllocator** borrowed)> GetAllocatorWithDefaultOptions{};
inline constexpr Slot<76, OrtStatus*(OrtAllocator*, void* memory)> AllocatorFree{};
inline constexpr Slot<69, OrtStatus*(OrtAllocatorType, OrtMemType, OrtMemoryInfo**)> CreateCpuMemoryInfo{};
inline constexpr Slot<94, void(OrtMemoryInfo*)> ReleaseMemoryInfo{};
inline constexpr Slot<49, OrtStatus*(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                     size_t rank, ElementType, OrtValue**)>
    CreateTensorWithDataAsOrtValue{};
inline constexpr Slot<96, void(OrtValue*)> ReleaseValue{};
inline constexpr Slot<9, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const* input_names,
                                    const OrtValue* const* inputs, size_t input_count,
                                    const char* const* output_names, size_t output_count, OrtValue** outputs)>
    Run{};

/* Throws the message of a status that is not null, and releases it. */
inline void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  throw std::runtime_error(message);
}

}  // namespace hybridkit::ort
#endif
