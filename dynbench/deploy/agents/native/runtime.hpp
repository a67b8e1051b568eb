// ONNX Runtime through its C API. The library is loaded when the agent starts, so one program goes with every release.
#pragma once

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cctype>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "array.hpp"

constexpr uint32_t API = 11;  // of release 1.11, which has all that is used here: later ones still offer it
constexpr const char* PROVIDER = "CPUExecutionProvider";

// The runtime says no; the message is what it says, in one line.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline const OrtApi* ort = nullptr;

struct Release {
  void operator()(OrtEnv* p) const { ort->ReleaseEnv(p); }
  void operator()(OrtSession* p) const { ort->ReleaseSession(p); }
  void operator()(OrtSessionOptions* p) const { ort->ReleaseSessionOptions(p); }
  void operator()(OrtMemoryInfo* p) const { ort->ReleaseMemoryInfo(p); }
  void operator()(OrtTensorTypeAndShapeInfo* p) const { ort->ReleaseTensorTypeAndShapeInfo(p); }
  void operator()(OrtValue* p) const { ort->ReleaseValue(p); }
};

template <class T>
using Owned = std::unique_ptr<T, Release>;

inline void checked(OrtStatus* status) {
  if (!status) return;
  std::string text;
  for (const char* c = ort->GetErrorMessage(status); *c; ++c)  // in one line, without doubled blanks
    if (!std::isspace(static_cast<unsigned char>(*c))) text += *c;
    else if (!text.empty() && text.back() != ' ') text += ' ';
  ort->ReleaseStatus(status);
  throw Fault("ONNX Runtime fails: " + trimmed(text).substr(0, 300));
}

inline Owned<OrtEnv> environment;

// Loads the library that lies beside this program, or else the one of the system. Returns its version.
inline std::string load_runtime() {
  char self[4096];
  const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  const std::string program(self, n > 0 ? size_t(n) : 0);
  const std::string beside = program.substr(0, program.rfind('/') + 1) + "libonnxruntime.so";
  // A library that lies there and does not fit is a mistake, so that no other is taken then.
  void* library = dlopen(beside.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (const char* name : {"libonnxruntime.so", "libonnxruntime.so.1"})
    if (!library && access(beside.c_str(), F_OK)) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Stop(std::string("ONNX Runtime cannot be loaded: ") + dlerror());
  using Base = const OrtApiBase*(ORT_API_CALL*)();
  const auto base = reinterpret_cast<Base>(dlsym(library, "OrtGetApiBase"));
  if (!base) throw Stop("ONNX Runtime cannot be loaded: the library has no OrtGetApiBase");
  const std::string version = base()->GetVersionString();
  ort = base()->GetApi(API);
  if (!ort) throw Stop("ONNX Runtime " + version + " does not have the API of version " + std::to_string(API));
  OrtEnv* env = nullptr;
  checked(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "dynbench", &env));
  environment.reset(env);
  return version;
}

inline const std::vector<std::pair<Type, ONNXTensorElementDataType>> TENSORS = {
    {Type::f32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},    {Type::f64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
    {Type::i32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},    {Type::i64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {Type::boolean, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}, {Type::u8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {Type::i8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8}};

// A tensor on memory that must outlive it.
inline Owned<OrtValue> tensor_on(char* data, size_t bytes, const std::vector<int64_t>& shape, Type type) {
  static const auto memory = [] {
    OrtMemoryInfo* info = nullptr;
    checked(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
    return Owned<OrtMemoryInfo>(info);
  }();
  auto kind = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  for (const auto& [ours, theirs] : TENSORS)
    if (ours == type) kind = theirs;
  OrtValue* value = nullptr;
  checked(ort->CreateTensorWithDataAsOrtValue(memory.get(), data, bytes, shape.data(), shape.size(), kind, &value));
  return Owned<OrtValue>(value);
}

inline Array copied(OrtValue* value) {
  OrtTensorTypeAndShapeInfo* got = nullptr;
  checked(ort->GetTensorTypeAndShape(value, &got));
  const Owned<OrtTensorTypeAndShapeInfo> info(got);
  size_t dimensions = 0, count = 0;
  auto kind = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  checked(ort->GetDimensionsCount(info.get(), &dimensions));
  checked(ort->GetTensorShapeElementCount(info.get(), &count));
  checked(ort->GetTensorElementType(info.get(), &kind));
  Array array;
  array.shape.resize(dimensions);
  checked(ort->GetDimensions(info.get(), array.shape.data(), dimensions));
  bool known = false;
  for (const auto& [ours, theirs] : TENSORS)
    if (theirs == kind) array.type = ours, known = true;
  if (!known) throw Fault("an output has a type that jobs do not have");
  void* data = nullptr;
  checked(ort->GetTensorMutableData(value, &data));
  const char* begin = static_cast<const char*>(data);
  array.data.assign(begin, begin + count * bytes_of(array.type));
  return array;
}

class Session {
 public:
  Session(const std::string& path, int threads) {
    OrtSessionOptions* made = nullptr;
    checked(ort->CreateSessionOptions(&made));
    const Owned<OrtSessionOptions> options(made);
    checked(ort->SetIntraOpNumThreads(options.get(), threads));
    checked(ort->SetInterOpNumThreads(options.get(), 1));
    checked(ort->SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_FATAL));
    OrtSession* session = nullptr;
    checked(ort->CreateSession(environment.get(), path.c_str(), options.get(), &session));
    session_.reset(session);
  }

  bool takes(const std::string& input) const {
    OrtAllocator* allocator = nullptr;
    checked(ort->GetAllocatorWithDefaultOptions(&allocator));
    size_t inputs = 0;
    checked(ort->SessionGetInputCount(session_.get(), &inputs));
    bool found = false;
    for (size_t i = 0; i < inputs; ++i) {
      char* name = nullptr;
      checked(ort->SessionGetInputName(session_.get(), i, allocator, &name));
      found = found || input == name;
      checked(ort->AllocatorFree(allocator, name));
    }
    return found;
  }

  // feeds: a value for each of the inputs; out: room for as many values as names, which the caller releases.
  void run(const std::vector<const char*>& inputs, const OrtValue* const* feeds, const std::vector<const char*>& names,
           OrtValue** out) const {
    checked(ort->Run(session_.get(), nullptr, inputs.data(), feeds, inputs.size(), names.data(), names.size(), out));
  }

 private:
  Owned<OrtSession> session_;
};

// The values that a run gives; released at the end of the scope, also where the run fails.
class Values {
 public:
  explicit Values(size_t count) : values_(count, nullptr) {}
  ~Values() { clear(); }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  OrtValue** data() { return values_.data(); }
  OrtValue* operator[](size_t i) const { return values_[i]; }
  void clear() {
    for (OrtValue*& value : values_) {
      if (value) ort->ReleaseValue(value);
      value = nullptr;
    }
  }

 private:
  std::vector<OrtValue*> values_;
};
