/// \file onnxruntime.cpp
/// \brief The ops of domain `stn`, version 1, as onnxruntime custom ops: RegisterCustomOps.
///
/// onnxruntime uses a registered op for every node of its name and cannot fall back to the model's function, so there
/// is one op per combination of types and per execution provider for which this library has kernels.
#include <mutex>

#include "kernels/cuda.hpp"
#include "onnxruntime_op.hpp"
#include "stn/stn.h"

namespace stn::ort {
namespace {

ElementType element_type_of(int32_t dtype) {
  return dtype == STN_FP32 ? kFloat : dtype == STN_FP16 ? kFloat16 : kBFloat16;
}

/// Adds one op for each combination of types. The ops are never freed, because onnxruntime keeps pointers to them.
Status* add_op(const Api& api, CustomOpDomain* domain, OpKind kind, bool cuda) {
  for (int32_t image : {STN_FP32, STN_FP16, STN_BF16}) {
    for (int32_t grid : {STN_FP32, STN_FP16, STN_BF16}) {
      if (kind != OpKind::kSampler && grid != STN_FP32) continue;
      if (Status* status = api.add_op(domain, new Op(&api, kind, cuda, image, grid))) return status;
    }
  }
  return nullptr;
}

Status* add_ops(const Api& api, CustomOpDomain* domain) {
  for (bool cuda : {false, true}) {
    if (cuda && !has_cuda()) continue;
    for (OpKind kind :
         {OpKind::kSpatial, OpKind::kProjective, OpKind::kTensorProduct, OpKind::kLattice, OpKind::kSampler}) {
      if (Status* status = add_op(api, domain, kind, cuda)) return status;
    }
  }
  return nullptr;
}

}  // namespace

Op::Op(const Api* new_api, OpKind new_kind, bool on_cuda, int32_t image_dtype, int32_t coordinate_dtype)
    : CustomOp{}, api(new_api), kind(new_kind), cuda(on_cuda), dtype(image_dtype), grid_dtype(coordinate_dtype) {
  version = kApiVersion;
  name = [](const CustomOp* op) { return name_of(self(op).kind); };
  execution_provider = [](const CustomOp* op) {
    return self(op).cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  input_type = [](const CustomOp* op, size_t index) {
    if (index == 2 && self(op).kind == OpKind::kLattice) return kInt32;
    return element_type_of(index == 0 ? self(op).dtype : self(op).grid_dtype);
  };
  input_count = [](const CustomOp* op) { return inputs_of(self(op).kind); };
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
