/// \file onnxruntime_api.hpp
/// \brief The functions of onnxruntime's C API that a custom op may call, for onnxruntime_host: what is behind its
/// opaque types is defined here. Any other function ends the program.
///
/// The positions are those of onnxruntime's public header; that abi/onnxruntime.h has the same is tested in
/// onnxruntime.
#ifndef STN_TESTS_ONNXRUNTIME_API_HPP_
#define STN_TESTS_ONNXRUNTIME_API_HPP_

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../abi/onnxruntime.h"

namespace stn::ort {

struct Status {
  ErrorCode code;
  std::string message;
};

struct CustomOpDomain {
  std::string name;
  std::vector<const CustomOp*> ops;
};

struct SessionOptions {
  CustomOpDomain* domain = nullptr;
};

struct TensorInfo {
  ElementType type = kUndefined;
  std::vector<int64_t> sizes;
  std::vector<std::string> names;  ///< of axes whose size is -1; else empty
};

struct Value {
  TensorInfo info;
  void* data = nullptr;
};

struct OpAttribute {
  std::vector<int64_t> integers;
};

/// A node's attributes.
struct KernelInfo {
  std::map<std::string, std::string> words;
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> floats;
  std::map<std::string, std::vector<int64_t>> integer_lists;
  std::map<std::string, std::vector<float>> float_lists;
};

/// One call of a kernel. The output's memory is there before, as in onnxruntime's arena.
struct KernelContext {
  std::vector<Value> inputs;
  Value output;
  bool on_gpu = false;
  void* stream = nullptr;
  int outputs = 0, streams = 0, parallel_loops = 0;  ///< how often each was asked for
};

struct ShapeInferContext {
  std::vector<TensorInfo> inputs;
  OpAttribute grid_shape;
  TensorInfo output;
  int outputs = 0;
};

/// Objects that the library has not released yet.
inline int statuses = 0, infos = 0;

inline Status* refuse(const char* message) {
  ++statuses;
  return new Status{kFail, message};
}

template <size_t Position>
void unexpected() {
  std::fprintf(stderr, "the library called function %zu of OrtApi, which this host does not have\n", Position);
  std::exit(1);
}

/// As onnxruntime gives a list: its length if `values` is NULL, else its elements, if there is room for them.
template <class Element>
Status* give(const std::map<std::string, std::vector<Element>>& lists, const char* name, Element* values,
             size_t* count) {
  const auto found = lists.find(name);
  if (found == lists.end()) return refuse("no such attribute");
  const size_t room = std::exchange(*count, found->second.size());
  if (values == nullptr) return nullptr;
  if (room < *count) return refuse("the array is too short");
  std::copy(found->second.begin(), found->second.end(), values);
  return nullptr;
}

template <class Element>
Status* give(const std::map<std::string, Element>& attributes, const char* name, Element* value) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return refuse("no such attribute");
  *value = found->second;
  return nullptr;
}

/// Functions of the session and of objects.
inline void set_objects(Api* api) {
  const auto set = [api](size_t position, auto* function) {
    api->slots[position] = reinterpret_cast<Api::Function>(function);
  };
  set(
      0, +[](ErrorCode code, const char* message) {
        ++statuses;
        return new Status{code, message};
      });
  set(
      93, +[](Status* status) {
        --statuses;
        delete status;
      });
  set(
      26, +[](const char* name, CustomOpDomain** domain) -> Status* {
        *domain = new CustomOpDomain{name, {}};
        return nullptr;
      });
  set(
      27, +[](CustomOpDomain* domain, const CustomOp* op) -> Status* {
        domain->ops.push_back(op);
        return nullptr;
      });
  set(
      28, +[](SessionOptions* options, CustomOpDomain* domain) -> Status* {
        options->domain = domain;
        return nullptr;
      });
  set(
      51, +[](Value* value, void** data) -> Status* {
        *data = value->data;
        return nullptr;
      });
  set(
      57, +[](TensorInfo** info) -> Status* {
        ++infos;
        *info = new TensorInfo;
        return nullptr;
      });
  set(
      58, +[](TensorInfo* info, ElementType type) -> Status* {
        info->type = type;
        return nullptr;
      });
  set(
      59, +[](TensorInfo* info, const int64_t* sizes, size_t count) -> Status* {
        info->sizes.assign(sizes, sizes + count);
        return nullptr;
      });
  set(
      60, +[](const TensorInfo* info, ElementType* type) -> Status* {
        *type = info->type;
        return nullptr;
      });
  set(
      61, +[](const TensorInfo* info, size_t* count) -> Status* {
        *count = info->sizes.size();
        return nullptr;
      });
  set(
      62, +[](const TensorInfo* info, int64_t* sizes, size_t count) -> Status* {
        if (count < info->sizes.size()) return refuse("the array is too short");
        std::copy(info->sizes.begin(), info->sizes.end(), sizes);
        return nullptr;
      });
  set(
      63, +[](const TensorInfo* info, const char** names, size_t count) -> Status* {
        for (size_t d = 0; d < count; ++d) names[d] = d < info->names.size() ? info->names[d].c_str() : "";
        return nullptr;
      });
  set(
      65, +[](const Value* value, TensorInfo** info) -> Status* {
        ++infos;
        *info = new TensorInfo(value->info);
        return nullptr;
      });
  set(
      99, +[](TensorInfo* info) {
        --infos;
        delete info;
      });
  set(
      271, +[](TensorInfo* info, const char** names, size_t count) -> Status* {
        info->names.assign(names, names + count);
        return nullptr;
      });
}

/// Functions of a node, of a call and of shape inference.
inline void set_calls(Api* api) {
  const auto set = [api](size_t position, auto* function) {
    api->slots[position] = reinterpret_cast<Api::Function>(function);
  };
  set(85, +[](const KernelInfo* info, const char* name, float* value) { return give(info->floats, name, value); });
  set(86, +[](const KernelInfo* info, const char* name, int64_t* value) { return give(info->integers, name, value); });
  set(
      87, +[](const KernelInfo* info, const char* name, char* value, size_t* size) -> Status* {
        const auto found = info->words.find(name);
        if (found == info->words.end()) return refuse("no such attribute");
        const size_t room = std::exchange(*size, found->second.size() + 1);
        if (value == nullptr) return nullptr;
        if (room < *size) return refuse("the text is too long");
        std::memcpy(value, found->second.c_str(), *size);
        return nullptr;
      });
  set(
      162, +[](const KernelInfo* info, const char* name, float* values, size_t* count) {
        return give(info->float_lists, name, values, count);
      });
  set(
      163, +[](const KernelInfo* info, const char* name, int64_t* values, size_t* count) {
        return give(info->integer_lists, name, values, count);
      });
  set(
      90, +[](const KernelContext* context, size_t index, const Value** value) -> Status* {
        if (index >= context->inputs.size()) return refuse("no such input");
        *value = &context->inputs[index];
        return nullptr;
      });
  set(
      91, +[](KernelContext* context, size_t index, const int64_t* sizes, size_t rank, Value** value) -> Status* {
        if (index != 0) return refuse("no such output");
        ++context->outputs;
        context->output.info.sizes.assign(sizes, sizes + rank);
        *value = &context->output;
        return nullptr;
      });
  set(
      193, +[](const KernelContext* context, void** stream) -> Status* {
        if (!context->on_gpu) return refuse("no stream on the CPU");
        ++const_cast<KernelContext*>(context)->streams;
        *stream = context->stream;
        return nullptr;
      });
  set(
      274,
      +[](const KernelContext* context, void (*function)(void*, size_t), size_t total, size_t, void* data) -> Status* {
        if (context->on_gpu) return refuse("no threads of a session on the GPU");
        ++const_cast<KernelContext*>(context)->parallel_loops;
        for (size_t i = 0; i < total; ++i) function(data, i);
        return nullptr;
      });
  set(
      268, +[](const ShapeInferContext* context, size_t index, TensorInfo** info) -> Status* {
        if (index >= context->inputs.size()) return refuse("no such input");
        *info = const_cast<TensorInfo*>(&context->inputs[index]);
        return nullptr;
      });
  set(
      269, +[](const ShapeInferContext* context, const char* name, const OpAttribute** attribute) -> Status* {
        if (std::strcmp(name, "grid_shape") != 0) return refuse("no such attribute");
        *attribute = &context->grid_shape;
        return nullptr;
      });
  set(
      270, +[](const ShapeInferContext* context, size_t index, const TensorInfo* info) -> Status* {
        auto* mutable_context = const_cast<ShapeInferContext*>(context);
        if (index != 0) return refuse("no such output");
        ++mutable_context->outputs;
        mutable_context->output = *info;
        return nullptr;
      });
  set(
      272, +[](const OpAttribute* attribute, AttributeType type, void* data, size_t bytes, size_t* used) -> Status* {
        *used = attribute->integers.size() * sizeof(int64_t);
        if (type != kAttributeInts || bytes < *used) return refuse("no list of integers that fits");
        std::memcpy(data, attribute->integers.data(), *used);
        return nullptr;
      });
}

template <size_t... Positions>
Api make_api(std::index_sequence<Positions...>) {
  Api api{{&unexpected<Positions>...}};
  set_objects(&api);
  set_calls(&api);
  return api;
}

/// \brief The table of version 17 or older; none for a newer version.
inline const Api* get_api(uint32_t version) {
  static const Api api = make_api(std::make_index_sequence<sizeof(Api) / sizeof(Api::Function)>());
  return version <= kApiVersion ? &api : nullptr;
}

}  // namespace stn::ort

#endif  // STN_TESTS_ONNXRUNTIME_API_HPP_
