/// \file onnxruntime.cpp
/// \brief `stn::SpatialTransformer` and `stn::ProjectiveTransformer`, version 1, as onnxruntime custom ops.
///
/// onnxruntime uses a registered op for every node of its name and cannot fall back to the model's function, so there
/// is one op per image type and per execution provider for which this library has kernels.
#include "abi/onnxruntime.h"

#include <initializer_list>
#include <mutex>
#include <new>
#include <string>

#include "kernels/cpu.hpp"
#include "kernels/cuda.hpp"
#include "kernels/warp.hpp"
#include "stn/stn.h"

namespace stn::ort {
namespace {

/// A node's attributes.
struct Settings {
  const Api* api;
  bool cuda;
  int32_t dtype, kind, mode, padding, align_corners, rank;
  int64_t output_size[3];
};

/// One op: a name, an image type and an execution provider.
struct Op : CustomOp {
  Op(const Api* api, const char* op_name, bool on_cuda, int32_t image_dtype);

  const Api* api;
  const char* op_name;
  bool cuda;
  int32_t dtype;
};

const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

ElementType element_type_of(int32_t dtype) {
  return dtype == STN_FP32 ? kFloat : dtype == STN_FP16 ? kFloat16 : kBFloat16;
}

/// The index of `value` in `names` or in `others`, the alternative spellings; -1 if it is in neither.
int32_t find(const std::string& value, std::initializer_list<const char*> names,
             std::initializer_list<const char*> others = {}) {
  int32_t index = 0;
  for (const char* name : names) {
    if (value == name) return index;
    ++index;
  }
  index = 0;
  for (const char* name : others) {
    if (value == name) return index;
    ++index;
  }
  return -1;
}

/// A string attribute; `fallback` if the node does not have it.
std::string text_attribute(const Api& api, const KernelInfo* info, const char* name, const char* fallback) {
  size_t size = 0;
  Status* status = api.attribute_string(info, name, nullptr, &size);
  if (status == nullptr && size > 0) {
    std::string value(size, '\0');
    status = api.attribute_string(info, name, &value[0], &size);
    if (status == nullptr) return value.substr(0, size - 1);  // onnxruntime counts the terminating NUL
  }
  if (status != nullptr) api.release(status);
  return fallback;
}

Status* reject(const Api& api, const std::string& what) {
  return api.create_status(kInvalidArgument, ("stn::SpatialTransformer: " + what).c_str());
}

Status* read_settings(const Op& op, const Api& api, const KernelInfo* info, Settings* settings) {
  settings->api = &api;
  settings->cuda = op.cuda;
  settings->dtype = op.dtype;
  const bool projective = std::string(op.op_name) == "ProjectiveTransformer";
  const std::string kind = projective ? "projective" : text_attribute(api, info, "kind", "basis");
  const std::string mode = text_attribute(api, info, "mode", "bilinear");
  const std::string padding = text_attribute(api, info, "padding_mode", "zeros");
  settings->kind = find(kind, {"affine", "basis", "projective"});
  settings->mode = find(mode, {"bilinear", "nearest", "bicubic"}, {"linear", "nearest", "cubic"});
  settings->padding = find(padding, {"zeros", "border", "reflection"});
  if (settings->kind < 0) return reject(api, "expected kind affine or basis, got " + kind);
  if (settings->mode < 0) return reject(api, "expected mode bilinear, nearest or bicubic, got " + mode);
  if (settings->padding < 0) return reject(api, "expected padding_mode zeros, border or reflection, got " + padding);
  int64_t align = 0;
  if (Status* status = api.attribute_int(info, "align_corners", &align)) {
    api.release(status);
    align = 0;
  }
  settings->align_corners = align != 0;

  // grid_shape = [0, (D,) H, W, rank]
  size_t count = 0;
  int64_t shape[5] = {};
  if (Status* status = api.attribute_ints(info, "grid_shape", nullptr, &count)) return status;
  if (count != 4 && count != 5) return reject(api, "expected grid_shape [0, H, W, 2] or [0, D, H, W, 3]");
  if (Status* status = api.attribute_ints(info, "grid_shape", shape, &count)) return status;
  settings->rank = static_cast<int32_t>(count) - 2;
  if (shape[count - 1] != settings->rank) return reject(api, "the last entry of grid_shape must be the rank");
  for (int d = 0; d < settings->rank; ++d) settings->output_size[d] = shape[d + 1];
  if (settings->rank == 3 && settings->mode == STN_BICUBIC) return reject(api, "bicubic is for images only");
  return nullptr;
}

Status* create_kernel(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  Settings* settings = new (std::nothrow) Settings{};
  if (settings == nullptr) return api->create_status(kFail, "out of memory");
  Status* status = read_settings(self(op), *api, info, settings);
  if (status != nullptr) {
    delete settings;
    return status;
  }
  *kernel = settings;
  return nullptr;
}

void destroy_kernel(void* kernel) { delete static_cast<Settings*>(kernel); }

/// An input's data and shape.
struct Tensor {
  void* data = nullptr;
  int64_t size[8] = {};
  size_t rank = 0;
};

Status* read_input(const Api& api, KernelContext* context, size_t index, Tensor* tensor) {
  const Value* value = nullptr;
  TensorInfo* info = nullptr;
  if (Status* status = api.input(context, index, &value)) return status;
  if (Status* status = api.tensor_info(value, &info)) return status;
  Status* status = api.dimensions_count(info, &tensor->rank);
  if (status == nullptr && tensor->rank > 8) status = reject(api, "an input has more than eight axes");
  if (status == nullptr) status = api.dimensions(info, tensor->size, tensor->rank);
  api.release(info);
  if (status != nullptr) return status;
  return api.tensor_data(const_cast<Value*>(value), &tensor->data);
}

/// Checks the inputs' shapes and fills in the problem.
Status* pose(const Settings& s, const Tensor& image, const Tensor& theta, const Tensor& basis, stn_problem* p) {
  const Api& api = *s.api;
  const size_t rank = static_cast<size_t>(s.rank);
  const int64_t rows = s.kind == STN_PROJECTIVE ? 3 : s.rank;
  if (image.rank != rank + 2) return reject(api, "the rank of input does not match grid_shape");
  if (theta.rank != 3 || theta.size[1] != rows) return reject(api, "theta is [N, D, K], or [N, 3, 3] if projective");
  if (basis.rank != 2 || basis.size[0] != theta.size[2]) return reject(api, "basis is [K, P] with the K of theta");
  *p = stn_problem{};
  p->struct_size = sizeof(stn_problem);
  p->rank = s.rank;
  p->kind = s.kind;
  p->mode = s.mode;
  p->padding = s.padding;
  p->align_corners = s.align_corners;
  p->dtype = s.dtype;
  p->batch = p->input_batch = image.size[0];
  p->theta_batch = theta.size[0];
  p->channels = image.size[1];
  int64_t pixels = 1;
  for (size_t d = 0; d < rank; ++d) {
    p->input_size[d] = image.size[d + 2];
    p->output_size[d] = s.output_size[d];
    pixels *= s.output_size[d];
  }
  if (theta.size[0] != image.size[0]) return reject(api, "input and theta have different batch sizes");
  if (basis.size[1] != pixels) return reject(api, "the P of basis [K, P] does not match grid_shape");
  p->basis_rows = theta.size[2];
  p->input = image.data;
  p->theta = theta.data;
  p->basis = static_cast<const float*>(basis.data);
  return nullptr;
}

struct CpuWork {
  CpuPlan plan;
  int64_t piece;
};

/// Runs on the session's threads, so that its thread settings apply.
Status* run_on_cpu(const Api& api, KernelContext* context, const Warp& warp) {
  CpuWork work{plan_cpu(warp), 0};
  const CpuPlan& plan = work.plan;
  constexpr int64_t kMostPieces = 128;
  work.piece = plan.grain;
  if (plan.units > work.piece * kMostPieces) work.piece = plan.units / kMostPieces + 1;
  const int64_t pieces = (plan.units + work.piece - 1) / work.piece;
  if (pieces <= 1) {
    plan.run(plan, 0, plan.units);
    return nullptr;
  }
  const auto run = [](void* data, size_t index) {
    const CpuWork& w = *static_cast<const CpuWork*>(data);
    const int64_t begin = static_cast<int64_t>(index) * w.piece;
    const int64_t end = begin + w.piece < w.plan.units ? begin + w.piece : w.plan.units;
    w.plan.run(w.plan, begin, end);
  };
  return api.parallel_for(context, run, static_cast<size_t>(pieces), 0, &work);
}

Status* compute(void* kernel, KernelContext* context) {
  const Settings& s = *static_cast<const Settings*>(kernel);
  const Api& api = *s.api;
  Tensor image, theta, basis;
  if (Status* status = read_input(api, context, 0, &image)) return status;
  if (Status* status = read_input(api, context, 1, &theta)) return status;
  if (Status* status = read_input(api, context, 2, &basis)) return status;
  stn_problem problem;
  if (Status* status = pose(s, image, theta, basis, &problem)) return status;

  int64_t shape[5] = {image.size[0], image.size[1], s.output_size[0], s.output_size[1], s.output_size[2]};
  Value* output = nullptr;
  if (Status* status = api.output(context, 0, shape, static_cast<size_t>(s.rank) + 2, &output)) return status;
  if (Status* status = api.tensor_data(output, &problem.output)) return status;

  Warp warp;
  int result = make_warp(&problem, &warp);
  if (result == STN_OK && !s.cuda) return run_on_cpu(api, context, warp);
  if (result == STN_OK) {
    void* stream = nullptr;
    if (Status* status = api.gpu_stream(context, &stream)) return status;
    result = run_cuda(warp, stream);
  }
  return result == STN_OK ? nullptr : reject(api, stn_status_text(result));
}

/// Sets `info` to the output's shape: the input's batch and channels, then the sizes in grid_shape. `known` is whether
/// all of them are known.
Status* describe_output(const Api& api, const ShapeInferContext* context, TensorInfo* info, bool* known) {
  TensorInfo* image = nullptr;
  const OpAttribute* attribute = nullptr;
  if (Status* status = api.inferred_input(context, 0, &image)) return status;
  if (Status* status = api.inferred_attribute(context, "grid_shape", &attribute)) return status;
  int64_t grid_shape[5] = {};
  size_t bytes = 0, rank = 0;
  if (Status* status = api.read_attribute(attribute, kAttributeInts, grid_shape, sizeof grid_shape, &bytes)) {
    return status;
  }
  if (Status* status = api.dimensions_count(image, &rank)) return status;
  // An input of unknown shape has no axes here. Inconsistent shapes are rejected when the kernel runs.
  if ((rank != 4 && rank != 5) || bytes != rank * sizeof(int64_t)) return nullptr;
  int64_t sizes[5] = {};
  const char* names[5] = {};
  ElementType type = kUndefined;
  if (Status* status = api.dimensions(image, sizes, rank)) return status;
  if (Status* status = api.symbolic_dimensions(image, names, rank)) return status;
  *known = true;
  for (size_t d = 0; d < rank; ++d) {
    if (d >= 2) sizes[d] = grid_shape[d - 1];
    if (d >= 2 || names[d] == nullptr) names[d] = "";
    *known = *known && (sizes[d] >= 0 || names[d][0] != '\0');
  }
  if (Status* status = api.element_type(image, &type)) return status;
  if (Status* status = api.set_element_type(info, type)) return status;
  if (Status* status = api.set_dimensions(info, sizes, rank)) return status;
  return api.set_symbolic_dimensions(info, names, rank);
}

/// Sets the output's shape when a model is loaded. An unknown shape is left unset, which is not an error.
Status* infer_shape(const CustomOp* op, ShapeInferContext* context) {
  const Api& api = *self(op).api;
  TensorInfo* info = nullptr;
  bool known = false;
  if (Status* status = api.create_tensor_info(&info)) return status;
  Status* status = describe_output(api, context, info, &known);
  if (status == nullptr && known) status = api.infer_output(context, 0, info);
  api.release(info);
  if (status != nullptr) api.release(status);
  return nullptr;
}

Op::Op(const Api* new_api, const char* new_name, bool on_cuda, int32_t image_dtype)
    : CustomOp{}, api(new_api), op_name(new_name), cuda(on_cuda), dtype(image_dtype) {
  version = kApiVersion;
  name = [](const CustomOp* op) { return self(op).op_name; };
  execution_provider = [](const CustomOp* op) {
    return self(op).cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  input_type = [](const CustomOp* op, size_t index) { return index == 0 ? element_type_of(self(op).dtype) : kFloat; };
  input_count = [](const CustomOp*) -> size_t { return 3; };
  output_type = [](const CustomOp* op, size_t) { return element_type_of(self(op).dtype); };
  output_count = [](const CustomOp*) -> size_t { return 1; };
  input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  output_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  input_memory = [](const CustomOp*, size_t) { return kMemoryDefault; };
  variadic_input_min = variadic_output_min = [](const CustomOp*) { return 1; };
  variadic_input_same = variadic_output_same = [](const CustomOp*) { return 0; };
  create_kernel_status = ort::create_kernel;
  compute_status = ort::compute;
  destroy_kernel = ort::destroy_kernel;
  infer_shape = ort::infer_shape;
  start_version = [](const CustomOp*) { return 1; };
  end_version = [](const CustomOp*) { return 1; };
}

/// Adds all ops to a domain. The ops are never freed, because onnxruntime keeps pointers to them.
Status* add_ops(const Api& api, CustomOpDomain* domain) {
  static const Op ops[] = {
      {&api, "SpatialTransformer", false, STN_FP32},    {&api, "SpatialTransformer", false, STN_FP16},
      {&api, "SpatialTransformer", false, STN_BF16},    {&api, "ProjectiveTransformer", false, STN_FP32},
      {&api, "ProjectiveTransformer", false, STN_FP16}, {&api, "ProjectiveTransformer", false, STN_BF16},
      {&api, "SpatialTransformer", true, STN_FP32},     {&api, "SpatialTransformer", true, STN_FP16},
      {&api, "SpatialTransformer", true, STN_BF16},     {&api, "ProjectiveTransformer", true, STN_FP32},
      {&api, "ProjectiveTransformer", true, STN_FP16},  {&api, "ProjectiveTransformer", true, STN_BF16},
  };
  for (const Op& op : ops) {
    if (op.cuda && !has_cuda()) continue;
    if (Status* status = api.add_op(domain, &op)) return status;
  }
  return nullptr;
}

}  // namespace
}  // namespace stn::ort

/// onnxruntime's entry point, called when the library is registered with session options.
extern "C" STN_API stn::ort::Status* RegisterCustomOps(stn::ort::SessionOptions* options,
                                                       const stn::ort::ApiBase* base) {
  const stn::ort::Api* api = base->get_api(stn::ort::kApiVersion);
  if (api == nullptr) {
    // Older than 1.17: only the first function of the table is certain to exist.
    api = base->get_api(1);
    return api == nullptr ? nullptr
                          : api->create_status(stn::ort::kNotImplemented, "stn needs onnxruntime 1.17 or newer");
  }
  // One domain for all sessions, never released, because sessions may outlive any owner.
  static std::mutex mutex;
  static stn::ort::CustomOpDomain* shared = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (shared == nullptr) {
    stn::ort::CustomOpDomain* domain = nullptr;
    if (stn::ort::Status* status = api->create_domain("stn", &domain)) return status;
    if (stn::ort::Status* status = stn::ort::add_ops(*api, domain)) return status;
    shared = domain;
  }
  return api->add_domain(options, shared);
}
