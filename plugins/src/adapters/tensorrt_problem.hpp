/// \file tensorrt_problem.hpp
/// \brief Conversion of TensorRT's tensor descriptions to stn_problem.
#ifndef STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_
#define STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_

#include "../../abi/tensorrt.h"
#include "stn/stn.h"
#include "tensorrt_config.hpp"

namespace stn::trt {

/// \brief Whether the kernels support the image's format: planar, or channels-last without padding.
///
/// kHWC8 and kDHWC8 pad the channels to a multiple of 8. They are supported only if there is no padding, so that no
/// channel is left unwritten or read uninitialized.
bool layout_of(const nvinfer1::PluginTensorDesc& desc, stn_layout& layout) noexcept;

/// \brief Converts TensorRT's type to a stn_dtype; false if the kernels do not support it.
bool dtype_of(nvinfer1::DataType type, stn_dtype& dtype) noexcept;

/// \brief Checks that the shapes of the inputs (and of the output, unless it is null) are consistent.
/// \param in the shapes of info(config.op).inputs inputs; an extent of -1 is unknown and matches any extent.
/// \return nullptr, or an error message.
const char* check_shapes(const Config& config, const nvinfer1::Dims* in, const nvinfer1::Dims* out) noexcept;

/// \brief Sets all fields except the pointers. Shapes must be known and have passed check_shapes.
/// \return nullptr, or an error message.
const char* fill(const Config& config, const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc& out,
                 stn_problem& problem) noexcept;

}  // namespace stn::trt

#endif  // STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_
