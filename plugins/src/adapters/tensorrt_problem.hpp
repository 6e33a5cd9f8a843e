/// \file tensorrt_problem.hpp
/// \brief From TensorRT's tensor descriptions to the library's own stn_problem.
#ifndef STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_
#define STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_

#include "../../abi/tensorrt.h"
#include "stn/stn.h"
#include "tensorrt_config.hpp"

namespace stn::trt {

/// \brief Whether the image's format is one that the kernels read: planar, or channels-last without padding.
///
/// kHWC8 and kDHWC8 pad the channels to a multiple of 8. They are taken only where there is nothing to pad, so that no
/// channel is ever left unwritten or read as garbage.
bool layout_of(const nvinfer1::PluginTensorDesc& desc, stn_layout& layout) noexcept;

/// \brief The library's type for TensorRT's; false if the kernels don't know it.
bool dtype_of(nvinfer1::DataType type, stn_dtype& dtype) noexcept;

/// \brief Checks that the shapes of inputs (and of the output, unless it is null) fit together.
/// \param in as many as info(config.op).inputs; extents of -1 are not known yet and fit everything.
/// \return nullptr, or what is wrong.
const char* check_shapes(const Config& config, const nvinfer1::Dims* in, const nvinfer1::Dims* out) noexcept;

/// \brief Fills in everything but the pointers. Shapes must be known and have passed check_shapes.
/// \return nullptr, or what is wrong.
const char* fill(const Config& config, const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc& out,
                 stn_problem& problem) noexcept;

}  // namespace stn::trt

#endif  // STN_SRC_ADAPTERS_TENSORRT_PROBLEM_HPP_
