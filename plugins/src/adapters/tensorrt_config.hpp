/// \file tensorrt_config.hpp
/// \brief The configuration of a TensorRT plugin: an op and its attributes, parsed from and serialized to fields.
#ifndef STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_
#define STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../../abi/tensorrt.h"
#include "stn/stn.h"

namespace stn::trt {

/// The ops for which this library has TensorRT plugins: five of domain `stn`, one of them in two versions, and a
/// drop-in for ONNX's GridSample.
enum class Op { kSpatial, kProjective, kGridSample, kSampler, kTensorProduct, kLattice, kProjective2 };

/// \brief Whether the op reads a sampling grid, instead of theta and basis.
inline bool reads_grid(Op op) noexcept { return op == Op::kGridSample || op == Op::kSampler; }

/// \brief Name, namespace, version and number of inputs of an op.
struct OpInfo {
  const char* name;
  const char* name_space;
  const char* version;
  int32_t inputs;
};

/// \brief The OpInfo of `op`.
const OpInfo& info(Op op) noexcept;

/// \brief The `w_min` of a denominator that is not bounded.
inline constexpr float kNoBound = -std::numeric_limits<float>::max();

/// \brief An op's validated attributes.
struct Config {
  Op op = Op::kSpatial;
  int32_t kind = STN_AFFINE;      ///< stn_kind
  int32_t mode = STN_BILINEAR;    ///< stn_mode
  int32_t padding = STN_ZEROS;    ///< stn_padding
  int32_t align_corners = 0;      ///< 0 or 1
  std::vector<int64_t> out_size;  ///< (D,) H, W; empty if the grid defines it
  float w_min = kNoBound;         ///< kProjective2: the least denominator; not NaN
  std::vector<float> offset;      ///< kProjective2: x, y(, z), finite; empty in other ops

  /// \brief Spatial rank, 2 or 3; 0 if it depends on the inputs (ops that read a grid).
  int32_t rank() const noexcept { return static_cast<int32_t>(out_size.size()); }

  /// \brief All attributes on one line, equal for equal configurations: "SpatialTransformer affine bilinear ...".
  std::string text() const;
};

/// \brief The default attributes of `op` (with an output of one pixel, unless the grid defines it).
Config default_config(Op op);

/// \brief Parses a configuration from fields; missing fields have their defaults, unknown fields are ignored (TensorRT
/// adds fields of its own).
/// \param reason set to why the fields were rejected; otherwise unchanged.
/// \return whether `config` was set.
bool parse(Op op, const nvinfer1::PluginFieldCollection* fields, Config& config, std::string& reason);

/// \brief The fields of a configuration, in the form that `parse` reads. Owns the fields' data.
class Fields {
 public:
  explicit Fields(const Config& config);
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  /// \brief Valid during the lifetime of this object.
  const nvinfer1::PluginFieldCollection* collection() const noexcept { return &collection_; }

 private:
  int32_t align_corners_;
  float w_min_;
  std::vector<float> offset_;
  std::vector<int32_t> grid_shape_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

/// \brief Writes a line to stderr if the environment variable STN_LOG is set and not 0.
void log(const std::string& line) noexcept;

}  // namespace stn::trt

#endif  // STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_
