#include "tensorrt_plugin.hpp"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "stn/stn.h"
#include "tensorrt_problem.hpp"

namespace stn::trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr int32_t kMaxInputs = 5;
constexpr int32_t kOk = 0;
constexpr int32_t kFailed = 1;

int32_t reject(const Config& config, const char* reason) noexcept {
  try {
    log(config.text() + ": " + reason);
  } catch (const std::exception&) {
    // Out of memory: only the status is returned.
  }
  return kFailed;
}

const Dims& dims_of(const PluginTensorDesc& desc) noexcept { return desc.dims; }
const Dims& dims_of(const DynamicPluginTensorDesc& desc) noexcept { return desc.desc.dims; }

template <typename Desc>
int32_t check(const Config& config, const Desc* in, int32_t inputs, const Desc* out, int32_t outputs) noexcept {
  if (in == nullptr || out == nullptr || inputs != info(config.op).inputs || outputs != 1) {
    return reject(config, "wrong number of inputs or outputs");
  }
  Dims shapes[kMaxInputs] = {};
  for (int32_t i = 0; i < inputs; ++i) shapes[i] = dims_of(in[i]);
  const char* reason = check_shapes(config, shapes, &dims_of(out[0]));
  return reason == nullptr ? kOk : reject(config, reason);
}

/// Sets the pointers to the inputs after theta. Kind affine implies the canonical basis, so it is not read.
void set_constants(const Config& config, void const* const* constants, stn_problem& problem) noexcept {
  const auto floats = [constants](int32_t i) { return static_cast<const float*>(constants[i]); };
  switch (config.kind) {
    case STN_BASIS:
    case STN_PROJECTIVE:
      problem.basis = floats(0);
      break;
    case STN_TENSOR_PRODUCT:
      problem.planes = floats(0);
      problem.rows = floats(1);
      problem.columns = floats(2);
      break;
    case STN_LATTICE:
      problem.index = static_cast<const int32_t*>(constants[0]);
      problem.basis = floats(1);
      break;
    default:
      break;
  }
}

}  // namespace

bool on_host() noexcept {
  static const bool host = [] {
    const char* device = std::getenv("STN_TENSORRT_DEVICE");
    return device != nullptr && std::strcmp(device, "cpu") == 0;
  }();
  return host;
}

Plugin::Plugin(Config config) : config_(std::move(config)), text_(config_.text()), fields_(config_) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  try {
    return new Plugin(config_);
  } catch (const std::exception& error) {
    reject(config_, error.what());
    return nullptr;
  }
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept { return info(config_.op).name; }

nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept { return info(config_.op).version; }

nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept { return info(config_.op).name_space; }

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out,
                                int32_t nbOutputs) noexcept {
  return check(config_, in, nbInputs, out, nbOutputs);
}

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
                                   int32_t nbInputs) const noexcept {
  if (outputTypes == nullptr || inputTypes == nullptr || nbInputs != info(config_.op).inputs || nbOutputs != 1) {
    return reject(config_, "wrong number of inputs or outputs");
  }
  stn_dtype dtype = STN_FP32;
  if (!dtype_of(inputTypes[0], dtype)) {
    return reject(config_, "the image must be fp32, fp16 or bf16; dequantize it before the node");
  }
  outputTypes[0] = inputTypes[0];
  return kOk;
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* /*shapeInputs*/,
                                int32_t /*nbShapeInputs*/, DimsExprs* outputs, int32_t nbOutputs,
                                nvinfer1::IExprBuilder& exprBuilder) noexcept {
  if (inputs == nullptr || outputs == nullptr || nbInputs != info(config_.op).inputs || nbOutputs != 1) {
    return reject(config_, "wrong number of inputs or outputs");
  }
  const DimsExprs& image = inputs[0];
  const int32_t rank = image.nbDims - 2;
  if (rank != 2 && rank != 3) return reject(config_, "the image must be [N, C, H, W] or [N, C, D, H, W]");
  if (reads_grid(config_.op) && inputs[1].nbDims != image.nbDims) {
    return reject(config_, "the grid must have the same number of axes as the image");
  }
  if (!reads_grid(config_.op) && config_.rank() != rank) {
    return reject(config_, "the image's rank does not match grid_shape");
  }
  outputs[0].nbDims = image.nbDims;
  outputs[0].d[0] = image.d[0];
  outputs[0].d[1] = image.d[1];
  for (int32_t i = 0; i < rank; ++i) {
    outputs[0].d[i + 2] =
        reads_grid(config_.op) ? inputs[1].d[i + 1] : exprBuilder.constant(config_.out_size[static_cast<size_t>(i)]);
    if (outputs[0].d[i + 2] == nullptr) return reject(config_, "cannot create an expression for the output size");
  }
  return kOk;
}

bool Plugin::supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                       int32_t nbOutputs) noexcept {
  if (inOut == nullptr || nbInputs != info(config_.op).inputs || nbOutputs != 1) return false;
  if (pos < 0 || pos > nbInputs) return false;
  const PluginTensorDesc& image = inOut[0].desc;
  const PluginTensorDesc& desc = inOut[pos].desc;
  stn_dtype dtype = STN_FP32;
  stn_layout layout = STN_PLANAR;
  if (!dtype_of(image.type, dtype)) return false;  // INT8 beside quantized layers, among others
  if (pos == 0) return layout_of(desc, layout);
  if (pos == nbInputs) return desc.type == image.type && layout_of(desc, layout);
  if (config_.op == Op::kLattice && pos == 2) {
    return desc.format == nvinfer1::TensorFormat::kLINEAR && desc.type == DataType::kINT32;
  }
  // Coordinates: fp32 and linear; a grid also in the image's type, as in ONNX.
  const bool plain_grid = reads_grid(config_.op) && desc.type == image.type;
  return desc.format == nvinfer1::TensorFormat::kLINEAR && (desc.type == DataType::kFLOAT || plain_grid);
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out,
                              int32_t nbOutputs) noexcept {
  return check(config_, in, nbInputs, out, nbOutputs);
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
                        void const* const* inputs, void* const* outputs, void* /*workspace*/,
                        cudaStream_t stream) noexcept {
  if (inputs == nullptr || outputs == nullptr) return reject(config_, "the input or output buffers are missing");
  if (check(config_, inputDesc, info(config_.op).inputs, outputDesc, 1) != kOk) return kFailed;
  stn_problem problem;
  const char* reason = fill(config_, inputDesc, outputDesc[0], problem);
  if (reason != nullptr) return reject(config_, reason);
  problem.input = inputs[0];
  problem.theta = inputs[1];
  set_constants(config_, inputs + 2, problem);
  problem.output = outputs[0];
  const int status = on_host() ? stn_run_cpu(&problem, 0) : stn_run_cuda(&problem, stream);
  return status == STN_OK ? kOk : reject(config_, stn_status_text(status));
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept { return clone(); }

}  // namespace stn::trt
