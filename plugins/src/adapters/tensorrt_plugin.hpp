/// \file tensorrt_plugin.hpp
/// \brief The IPluginV3 of all ops; see plugins/abi/tensorrt.h for the interface.
///
/// Lifecycle in TensorRT: a creator creates the plugin for building; TensorRT calls configurePlugin and times each
/// format combination; the plugin's fields are serialized into the engine; at load, a creator creates the plugin from
/// them; attachToContext clones it per context; onShapeChange and enqueue run it. Shapes are read at enqueue and no
/// state is kept between calls, so one object can run with any shape and on any stream.
#ifndef STN_SRC_ADAPTERS_TENSORRT_PLUGIN_HPP_
#define STN_SRC_ADAPTERS_TENSORRT_PLUGIN_HPP_

#include <string>

#include "../../abi/tensorrt.h"
#include "tensorrt_config.hpp"

namespace stn::trt {

/// \brief Whether plugins compute in host memory: the environment variable STN_TENSORRT_DEVICE is "cpu".
///
/// TensorRT always passes device memory. This is for test hosts that run a plugin without a GPU.
bool on_host() noexcept;

/// \brief A spatial or projective transformer, or a sampler at a given grid, as a TensorRT layer.
///
/// Inputs: image [N, C, (D,) H, W] fp32, fp16 or bf16; then theta [N, D, K] and basis [K, P], fp32, or a grid
/// [N, (Do,) Ho, Wo, D] in fp32 or the image's type. Output [N, C, *out] in the image's type.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Config config);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& exprBuilder) noexcept override;
  bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                 int32_t nbOutputs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return 1; }
  char const* getTimingCacheID() noexcept override { return text_.c_str(); }
  char const* getMetadataString() noexcept override { return text_.c_str(); }

  // IPluginV3OneRuntime
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return fields_.collection(); }

 private:
  Config config_;
  std::string text_;
  Fields fields_;
};

}  // namespace stn::trt

#endif  // STN_SRC_ADAPTERS_TENSORRT_PLUGIN_HPP_
