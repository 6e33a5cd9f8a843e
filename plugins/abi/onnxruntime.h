/// \file onnxruntime.h
/// \brief The part of onnxruntime's C API that a custom op needs, declared by position.
///
/// onnxruntime's wheel contains no headers, but its API is an array of functions that is only appended to: a position
/// never changes its meaning. The positions below are from the public headers of version 1.17 and later; no function
/// newer than 1.17 is used.
#ifndef STN_ABI_ONNXRUNTIME_H_
#define STN_ABI_ONNXRUNTIME_H_

#include <cstddef>
#include <cstdint>

namespace stn::ort {

constexpr uint32_t kApiVersion = 17;

// onnxruntime's opaque types, used only through pointers.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Value;
struct TensorInfo;
struct OpAttribute;

enum ElementType : int { kUndefined = 0, kFloat = 1, kInt32 = 6, kFloat16 = 10, kBFloat16 = 16 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };
enum Characteristic : int { kRequired = 0 };
enum MemoryType : int { kMemoryDefault = 0 };
enum AttributeType : int { kAttributeInts = 2 };

/// OrtApi: a table of functions, called by position.
struct Api {
  using Function = void (*)();
  Function slots[276];  // all functions of version 1.17

  template <class Signature>
  Signature* at(size_t position) const {
    return reinterpret_cast<Signature*>(slots[position]);
  }

  Status* create_status(ErrorCode code, const char* message) const {
    return at<Status*(ErrorCode, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, CustomOpDomain** domain) const {
    return at<Status*(const char*, CustomOpDomain**)>(26)(name, domain);
  }
  Status* add_op(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status*(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* tensor_data(Value* value, void** data) const { return at<Status*(Value*, void**)>(51)(value, data); }
  Status* create_tensor_info(TensorInfo** info) const { return at<Status*(TensorInfo**)>(57)(info); }
  Status* set_element_type(TensorInfo* info, ElementType type) const {
    return at<Status*(TensorInfo*, ElementType)>(58)(info, type);
  }
  Status* set_dimensions(TensorInfo* info, const int64_t* sizes, size_t count) const {
    return at<Status*(TensorInfo*, const int64_t*, size_t)>(59)(info, sizes, count);
  }
  Status* element_type(const TensorInfo* info, ElementType* type) const {
    return at<Status*(const TensorInfo*, ElementType*)>(60)(info, type);
  }
  Status* dimensions_count(const TensorInfo* info, size_t* count) const {
    return at<Status*(const TensorInfo*, size_t*)>(61)(info, count);
  }
  Status* dimensions(const TensorInfo* info, int64_t* sizes, size_t count) const {
    return at<Status*(const TensorInfo*, int64_t*, size_t)>(62)(info, sizes, count);
  }
  /// The names of axes of unknown size; empty for other axes. `info` owns them.
  Status* symbolic_dimensions(const TensorInfo* info, const char** names, size_t count) const {
    return at<Status*(const TensorInfo*, const char**, size_t)>(63)(info, names, count);
  }
  Status* tensor_info(const Value* value, TensorInfo** info) const {
    return at<Status*(const Value*, TensorInfo**)>(65)(value, info);
  }
  Status* attribute_float(const KernelInfo* info, const char* name, float* value) const {
    return at<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, value);
  }
  Status* attribute_int(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* attribute_string(const KernelInfo* info, const char* name, char* value, size_t* size) const {
    return at<Status*(const KernelInfo*, const char*, char*, size_t*)>(87)(info, name, value, size);
  }
  Status* input(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* sizes, size_t rank, Value** value) const {
    return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, sizes, rank, value);
  }
  void release(Status* status) const { at<void(Status*)>(93)(status); }
  void release(TensorInfo* info) const { at<void(TensorInfo*)>(99)(info); }
  /// \param values may be NULL, to get only the size.
  Status* attribute_floats(const KernelInfo* info, const char* name, float* values, size_t* size) const {
    return at<Status*(const KernelInfo*, const char*, float*, size_t*)>(162)(info, name, values, size);
  }
  /// \param values may be NULL, to get only the size.
  Status* attribute_ints(const KernelInfo* info, const char* name, int64_t* values, size_t* size) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*, size_t*)>(163)(info, name, values, size);
  }
  Status* gpu_stream(const KernelContext* context, void** stream) const {
    return at<Status*(const KernelContext*, void**)>(193)(context, stream);
  }
  /// \param info owned by the context.
  Status* inferred_input(const ShapeInferContext* context, size_t index, TensorInfo** info) const {
    return at<Status*(const ShapeInferContext*, size_t, TensorInfo**)>(268)(context, index, info);
  }
  /// \param attribute owned by the context.
  Status* inferred_attribute(const ShapeInferContext* context, const char* name, const OpAttribute** attribute) const {
    return at<Status*(const ShapeInferContext*, const char*, const OpAttribute**)>(269)(context, name, attribute);
  }
  Status* infer_output(const ShapeInferContext* context, size_t index, const TensorInfo* info) const {
    return at<Status*(const ShapeInferContext*, size_t, const TensorInfo*)>(270)(context, index, info);
  }
  Status* set_symbolic_dimensions(TensorInfo* info, const char** names, size_t count) const {
    return at<Status*(TensorInfo*, const char**, size_t)>(271)(info, names, count);
  }
  /// \param bytes the size of `data`; \param used the size of the attribute.
  Status* read_attribute(const OpAttribute* attribute, AttributeType type, void* data, size_t bytes,
                         size_t* used) const {
    return at<Status*(const OpAttribute*, AttributeType, void*, size_t, size_t*)>(272)(attribute, type, data, bytes,
                                                                                       used);
  }
  /// Calls `function(data, i)` for i in [0, total) on the session's threads.
  Status* parallel_for(const KernelContext* context, void (*function)(void*, size_t), size_t total, size_t batches,
                       void* data) const {
    return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, function,
                                                                                                  total, batches, data);
  }
};

/// OrtApiBase: gives access to the table.
struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version_string)();
};

/// OrtCustomOp of version 17: the functions of an op that onnxruntime calls.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  MemoryType (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_same)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_same)(const CustomOp*);
  Status* (*create_kernel_status)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_status)(void*, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
};

static_assert(sizeof(CustomOp) == 22 * sizeof(void*), "a field of OrtCustomOp is missing");

}  // namespace stn::ort

#endif  // STN_ABI_ONNXRUNTIME_H_
