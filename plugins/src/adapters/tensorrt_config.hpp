/// \file tensorrt_config.hpp
/// \brief What a TensorRT plugin was created with: an op and its attributes, read from fields and written back.
#ifndef STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_
#define STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_

#include <cstdint>
#include <string>
#include <vector>

#include "../../abi/tensorrt.h"
#include "stn/stn.h"

namespace stn::trt {

/// The three ops that TensorRT can take from this library.
enum class Op { kSpatial, kProjective, kGridSample };

/// \brief Name, namespace and inputs of an op.
struct OpInfo {
  const char* name;
  const char* name_space;
  int32_t inputs;
};

/// \brief The table's row of `op`.
const OpInfo& info(Op op) noexcept;

/// \brief Version of all three ops.
inline constexpr const char* kVersion = "1";

/// \brief An op's attributes, checked.
struct Config {
  Op op = Op::kSpatial;
  int32_t kind = STN_AFFINE;      ///< stn_kind
  int32_t mode = STN_BILINEAR;    ///< stn_mode
  int32_t padding = STN_ZEROS;    ///< stn_padding
  int32_t align_corners = 0;      ///< 0 or 1
  std::vector<int64_t> out_size;  ///< (D,) H, W; empty for GridSample, whose grid says it

  /// \brief Spatial rank, 2 or 3; 0 where it depends on the inputs (GridSample).
  int32_t rank() const noexcept { return static_cast<int32_t>(out_size.size()); }

  /// \brief All attributes in one line, the same for equal configurations: "SpatialTransformer affine bilinear ...".
  std::string text() const;
};

/// \brief What `op` means when it has no attributes (and, but for GridSample, an output of one pixel).
Config default_config(Op op);

/// \brief Reads a configuration from fields; a field that is missing has its default, one that is unknown is passed
/// over (TensorRT hands over fields of its own).
/// \param reason why it was refused; untouched otherwise.
/// \return whether `config` was filled in.
bool parse(Op op, const nvinfer1::PluginFieldCollection* fields, Config& config, std::string& reason);

/// \brief The fields of a configuration, in a form that `parse` reads back. It owns what the fields point to.
class Fields {
 public:
  explicit Fields(const Config& config);
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  /// \brief Valid as long as this object.
  const nvinfer1::PluginFieldCollection* collection() const noexcept { return &collection_; }

 private:
  int32_t align_corners_;
  std::vector<int32_t> grid_shape_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

/// \brief Writes a line to stderr when the environment variable STN_LOG is set (to anything but 0).
void log(const std::string& line) noexcept;

}  // namespace stn::trt

#endif  // STN_SRC_ADAPTERS_TENSORRT_CONFIG_HPP_
