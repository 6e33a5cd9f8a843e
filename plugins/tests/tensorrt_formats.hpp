/// \file tensorrt_formats.hpp
/// \brief What a plugin accepts when TensorRT's builder offers it every type in every format, INT8 and FP8 among them.
///
/// Layers beside a spatial transformer may be quantized. The builder then offers their types for the tensors between,
/// position by position. The plugin takes floating-point images only, so the builder leaves the DequantizeLinear before
/// it and the QuantizeLinear after it, and the transformer runs in floating point.
#ifndef STN_TESTS_TENSORRT_FORMATS_HPP_
#define STN_TESTS_TENSORRT_FORMATS_HPP_

#include <string>
#include <vector>

#include "host_checks.hpp"
#include "tensorrt_cases.hpp"
#include "tensorrt_slots.hpp"

namespace formats {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::TensorFormat;

/// \brief All types of TensorRT 11: 2 INT8, 4 bool, 5 UINT8, 6 FP8, 8 INT64, 9 INT4, 10 FP4, 11 E8M0.
constexpr int32_t kTypes = 12;
/// \brief All formats: 1 CHW2, 3 CHW4, 4 CHW16, 5 CHW32, 7 CDHW32, 9 and 10 DLA's, 11 HWC16, 13 none yet.
constexpr int32_t kFormats = 14;
constexpr auto kINT8 = static_cast<DataType>(2);
constexpr auto kCHW32 = static_cast<TensorFormat>(5);
constexpr auto kHWC16 = static_cast<TensorFormat>(11);

/// \brief What a position must accept, written without the plugin's code.
inline bool accepted(const Case& c, int32_t position, DataType image, DataType type, TensorFormat format) {
  const bool linear = format == TensorFormat::kLINEAR;
  const bool coordinates = position > 0 && position < inputs_of(c);
  if (coordinates) {
    if (c.kind == STN_LATTICE && position == 2) return linear && type == DataType::kINT32;
    return linear && (type == DataType::kFLOAT || (reads_grid(c) && type == image));
  }
  const bool wide = type == DataType::kFLOAT, narrow = type == DataType::kHALF || type == DataType::kBF16;
  if ((!wide && !narrow) || (position != 0 && type != image)) return false;
  const auto padded = c.rank == 2 ? TensorFormat::kHWC8 : TensorFormat::kDHWC8;
  const auto last = c.rank == 2 ? TensorFormat::kHWC : TensorFormat::kDHWC;
  return linear || (wide && format == last) || (narrow && format == padded && c.channels % 8 == 0);
}

/// \brief Offers every type and format at every position of a case, each with valid ones at the other positions.
inline void check_every_format(const Case& c, void* build, std::vector<DynamicPluginTensorDesc> all) {
  const int32_t inputs = inputs_of(c);
  const auto supports = [&](int32_t position) {
    return slots::call<bool>(build, slots::kSupports, position, static_cast<const DynamicPluginTensorDesc*>(all.data()),
                             inputs, 1);
  };
  for (int32_t position = 0; position <= inputs; ++position) {
    nvinfer1::PluginTensorDesc& desc = all[static_cast<size_t>(position)].desc;
    const auto kept = desc;
    for (int32_t type = 0; type < kTypes; ++type) {
      for (int32_t format = 0; format < kFormats; ++format) {
        desc.type = static_cast<DataType>(type);
        desc.format = static_cast<TensorFormat>(format);
        const bool wanted = accepted(c, position, all[0].desc.type, desc.type, desc.format);
        const std::string where = std::string(c.name) + " position " + std::to_string(position) + " type " +
                                  std::to_string(type) + " format " + std::to_string(format);
        CHECK(supports(position) == wanted, where.c_str());
      }
    }
    desc = kept;
  }
}

/// \brief An image that the layer before gives in INT8: nothing after it is accepted, whatever it is.
inline void check_beside_int8(const Case& c, void* build, std::vector<DynamicPluginTensorDesc> all) {
  const int32_t inputs = inputs_of(c);
  for (const auto format : {TensorFormat::kLINEAR, kCHW32, kHWC16}) {
    for (const auto other : {DataType::kFLOAT, kINT8}) {
      all[0].desc.type = kINT8;
      all[0].desc.format = format;
      for (int32_t position = 0; position <= inputs; ++position) {
        if (position > 0) all[static_cast<size_t>(position)].desc.type = other;
        const bool taken = slots::call<bool>(build, slots::kSupports, position,
                                             static_cast<const DynamicPluginTensorDesc*>(all.data()), inputs, 1);
        CHECK(!taken, c.name);
      }
    }
  }
  std::vector<DataType> types;
  for (int32_t i = 0; i < inputs; ++i) types.push_back(all[static_cast<size_t>(i)].desc.type);
  for (const int32_t type : {2, 3, 4, 5, 6, 8, 9, 10, 11}) {
    types[0] = static_cast<DataType>(type);
    DataType out = DataType::kFLOAT;
    const auto status =
        slots::call<int32_t>(build, slots::kOutputTypes, &out, 1, static_cast<const DataType*>(types.data()), inputs);
    CHECK(status != 0, c.name);
  }
}

/// \brief Buffers of INT8 images or outputs are refused when the engine runs, too.
inline void check_enqueue_refuses_int8(const Case& c, void* runtime, std::vector<nvinfer1::PluginTensorDesc> d,
                                       void* const* in, void* const* out, void* stream) {
  const int32_t inputs = inputs_of(c);
  for (const int32_t position : {0, 1, inputs}) {
    nvinfer1::PluginTensorDesc& desc = d[static_cast<size_t>(position)];
    const auto kept = desc.type;
    desc.type = kINT8;
    const auto status =
        slots::call<int32_t>(runtime, slots::kEnqueue, static_cast<const nvinfer1::PluginTensorDesc*>(d.data()),
                             static_cast<const nvinfer1::PluginTensorDesc*>(d.data() + inputs), in, out,
                             static_cast<void*>(nullptr), stream);
    CHECK(status != 0, c.name);
    desc.type = kept;
  }
}

}  // namespace formats

#endif  // STN_TESTS_TENSORRT_FORMATS_HPP_
