/// \file tensorrt.cpp
/// \brief The plugin creators, and the two C functions that TensorRT looks up: getCreators and setLoggerFinder.
#include "../../abi/tensorrt.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "stn/stn.h"
#include "tensorrt_config.hpp"
#include "tensorrt_plugin.hpp"

namespace stn::trt {
namespace {

/// \brief Creates the plugins of one op, from an ONNX node's attributes or from an engine.
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Op op) : op_(op), defaults_(default_config(op)) {}

  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
                                    nvinfer1::TensorRTPhase /*phase*/) noexcept override {
    try {
      const std::string who = std::string(info(op_).name) + " '" + (name == nullptr ? "" : name) + "'";
      if (stn_has_cuda() == 0 && !on_host()) {
        // Printed even without STN_LOG: the CPU kernels would crash on TensorRT's device memory.
        std::fprintf(stderr, "stn: %s: libstn_plugins was built without CUDA; build it with nvcc\n", who.c_str());
        return nullptr;
      }
      Config config;
      std::string reason;
      if (!parse(op_, fc, config, reason)) {
        log(who + " rejected: " + reason);
        return nullptr;
      }
      log(who + " created: " + config.text());
      return new Plugin(config);
    } catch (const std::exception&) {
      return nullptr;
    }
  }

  // The parser looks up a node's attributes by these names and types. Their data is the default values.
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return defaults_.collection(); }
  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return info(op_).name; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return info(op_).version; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return info(op_).name_space; }

 private:
  Op op_;
  Fields defaults_;
};

}  // namespace
}  // namespace stn::trt

extern "C" {

/// \brief TensorRT's entry point: the creators and their number.
STN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) {
  static stn::trt::Creator spatial(stn::trt::Op::kSpatial);
  static stn::trt::Creator projective(stn::trt::Op::kProjective);
  static stn::trt::Creator grid_sample(stn::trt::Op::kGridSample);
  static stn::trt::Creator sampler(stn::trt::Op::kSampler);
  static stn::trt::Creator tensor_product(stn::trt::Op::kTensorProduct);
  static stn::trt::Creator lattice(stn::trt::Op::kLattice);
  static stn::trt::Creator projective2(stn::trt::Op::kProjective2);
  static const std::array<nvinfer1::IPluginCreatorInterface*, 7> creators = {
      &spatial, &projective, &grid_sample, &sampler, &tensor_product, &lattice, &projective2};
  nbCreators = static_cast<int32_t>(creators.size());
  return creators.data();
}

/// \brief TensorRT passes its logger here. It is not used: ILogger's layout differs between TensorRT 10 and 11.
STN_API void setLoggerFinder(nvinfer1::ILoggerFinder* /*finder*/) {}

}  // extern "C"
