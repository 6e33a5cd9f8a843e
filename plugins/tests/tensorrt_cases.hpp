/// \file tensorrt_cases.hpp
/// \brief The cases of the TensorRT host: one per op, mode, type and layout, with attributes, shapes and data.
#ifndef STN_TESTS_TENSORRT_CASES_HPP_
#define STN_TESTS_TENSORRT_CASES_HPP_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../abi/tensorrt.h"
#include "stn/stn.h"

namespace cases {

using namespace nvinfer1;

/// \brief Attributes of a node, or fields stored in an engine; owns their data.
struct Attributes {
  void word(const char* name, const std::string& text) {
    add(name, text.data(), PluginFieldType::kCHAR, 1, text.size());
  }
  void integers(const char* name, const std::vector<int32_t>& values) {
    add(name, values.data(), PluginFieldType::kINT32, sizeof(int32_t), values.size());
  }
  void long_integers(const char* name, const std::vector<int64_t>& values) {
    add(name, values.data(), PluginFieldType::kINT64, sizeof(int64_t), values.size());
  }
  void floats(const char* name, const std::vector<float>& values) {
    add(name, values.data(), PluginFieldType::kFLOAT32, sizeof(float), values.size());
  }
  void copy(const PluginFieldCollection& from) {
    for (int32_t i = 0; i < from.nbFields; ++i) {
      const PluginField& field = from.fields[i];
      const size_t size = field.type == PluginFieldType::kCHAR ? 1 : sizeof(int32_t);
      add(field.name, field.data, field.type, size, static_cast<size_t>(field.length));
    }
  }
  const PluginFieldCollection* collection() {
    view = {static_cast<int32_t>(fields.size()), fields.data()};
    return &view;
  }

 private:
  void add(const char* name, const void* data, PluginFieldType type, size_t size, size_t length) {
    names.push_back(std::make_unique<std::string>(name));
    // Misaligned by one byte, as bytes in a file may be.
    values.push_back(std::make_unique<std::vector<char>>(1 + size * length));
    if (length != 0) std::memcpy(values.back()->data() + 1, data, size * length);
    fields.emplace_back(names.back()->c_str(), values.back()->data() + 1, type, static_cast<int32_t>(length));
  }
  std::vector<std::unique_ptr<std::string>> names;
  std::vector<std::unique_ptr<std::vector<char>>> values;
  std::vector<PluginField> fields;
  PluginFieldCollection view{};
};

struct Case {
  const char* name;
  int creator;  // 0 spatial, 1 projective, 2 grid sample, 3 sampler, 4 tensor product, 5 lattice, 6 projective 2
  int32_t kind;
  int32_t mode;
  int32_t padding;
  int32_t align_corners;
  int32_t rank;
  DataType type;
  TensorFormat input_format;
  TensorFormat output_format;
  int64_t channels;
};

constexpr int kGridSample = 2;
constexpr int kProjective2 = 6;

/// \brief Whether the op reads a sampling grid, instead of theta and its constants.
inline bool reads_grid(const Case& c) { return c.kind == STN_GRID; }

inline const std::vector<Case>& all() {
  constexpr auto kLinear = TensorFormat::kLINEAR;
  static const std::vector<Case> table = {
      {"affine", 0, STN_AFFINE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 3},
      {"affine aligned border", 0, STN_AFFINE, STN_BILINEAR, STN_BORDER, 1, 2, DataType::kFLOAT, kLinear, kLinear, 1},
      {"affine bicubic reflection", 0, STN_AFFINE, STN_BICUBIC, STN_REFLECTION, 0, 2, DataType::kFLOAT, kLinear,
       kLinear, 2},
      {"affine nearest fp16", 0, STN_AFFINE, STN_NEAREST, STN_ZEROS, 0, 2, DataType::kHALF, kLinear, kLinear, 2},
      {"affine HWC", 0, STN_AFFINE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, TensorFormat::kHWC,
       TensorFormat::kHWC, 3},
      {"affine HWC8 to planar bf16", 0, STN_AFFINE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kBF16, TensorFormat::kHWC8,
       kLinear, 8},
      {"affine volume", 0, STN_AFFINE, STN_BILINEAR, STN_BORDER, 0, 3, DataType::kFLOAT, kLinear, kLinear, 2},
      {"affine volume DHWC8", 0, STN_AFFINE, STN_BILINEAR, STN_ZEROS, 0, 3, DataType::kHALF, TensorFormat::kDHWC8,
       TensorFormat::kDHWC8, 16},
      {"basis", 0, STN_BASIS, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 2},
      {"basis volume", 0, STN_BASIS, STN_NEAREST, STN_REFLECTION, 1, 3, DataType::kFLOAT, kLinear, kLinear, 1},
      {"projective", 1, STN_PROJECTIVE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 3},
      {"projective bicubic fp16", 1, STN_PROJECTIVE, STN_BICUBIC, STN_BORDER, 1, 2, DataType::kHALF, kLinear, kLinear,
       1},
      {"grid", 2, STN_GRID, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 2},
      {"grid volume", 2, STN_GRID, STN_BILINEAR, STN_REFLECTION, 1, 3, DataType::kFLOAT, kLinear, kLinear, 2},
      {"grid nearest fp16 image, fp32 grid", 2, STN_GRID, STN_NEAREST, STN_BORDER, 0, 2, DataType::kHALF, kLinear,
       kLinear, 2},
      {"sampler", 3, STN_GRID, STN_BILINEAR, STN_ZEROS, 1, 2, DataType::kFLOAT, kLinear, kLinear, 3},
      {"sampler bicubic HWC", 3, STN_GRID, STN_BICUBIC, STN_BORDER, 0, 2, DataType::kFLOAT, TensorFormat::kHWC,
       TensorFormat::kHWC, 3},
      {"sampler volume, fp16 image, fp32 grid", 3, STN_GRID, STN_BILINEAR, STN_BORDER, 0, 3, DataType::kHALF, kLinear,
       kLinear, 2},
      {"sampler nearest bf16 image HWC8, fp32 grid", 3, STN_GRID, STN_NEAREST, STN_REFLECTION, 0, 2, DataType::kBF16,
       TensorFormat::kHWC8, kLinear, 8},
      {"tensor product", 4, STN_TENSOR_PRODUCT, STN_BILINEAR, STN_ZEROS, 1, 2, DataType::kFLOAT, kLinear, kLinear, 3},
      {"tensor product bicubic fp16", 4, STN_TENSOR_PRODUCT, STN_BICUBIC, STN_BORDER, 0, 2, DataType::kHALF, kLinear,
       kLinear, 2},
      {"tensor product volume HWC", 4, STN_TENSOR_PRODUCT, STN_BILINEAR, STN_REFLECTION, 0, 3, DataType::kFLOAT,
       TensorFormat::kDHWC, TensorFormat::kDHWC, 3},
      {"lattice", 5, STN_LATTICE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 2},
      {"lattice volume nearest bf16", 5, STN_LATTICE, STN_NEAREST, STN_BORDER, 1, 3, DataType::kBF16, kLinear, kLinear,
       2},
      {"projective 2", 6, STN_PROJECTIVE, STN_BILINEAR, STN_ZEROS, 0, 2, DataType::kFLOAT, kLinear, kLinear, 3},
      {"projective 2 bicubic fp16", 6, STN_PROJECTIVE, STN_BICUBIC, STN_BORDER, 1, 2, DataType::kHALF, kLinear, kLinear,
       1},
      {"projective 2 volume DHWC", 6, STN_PROJECTIVE, STN_BILINEAR, STN_REFLECTION, 0, 3, DataType::kFLOAT,
       TensorFormat::kDHWC, TensorFormat::kDHWC, 3},
      {"projective 2 volume nearest bf16", 6, STN_PROJECTIVE, STN_NEAREST, STN_BORDER, 1, 3, DataType::kBF16, kLinear,
       kLinear, 2},
  };
  return table;
}

/// \brief A tensor product's lattice: planes, rows, columns.
inline std::vector<int64_t> lattice(const Case& c) { return {c.rank == 3 ? 2 : 1, 3, 4}; }

/// \brief Lattice points per pixel.
constexpr int64_t kTaps = 3;

inline std::vector<int64_t> output_size(const Case& c) {
  return c.rank == 2 ? std::vector<int64_t>{5, 7} : std::vector<int64_t>{3, 4, 5};
}

inline int64_t columns(const Case& c) {
  switch (c.kind) {
    case STN_BASIS:
    case STN_LATTICE:
      return 6;
    case STN_TENSOR_PRODUCT:
      return lattice(c)[0] * lattice(c)[1] * lattice(c)[2];
    case STN_PROJECTIVE:
      return c.creator == kProjective2 ? 5 : 3;
    default:
      return c.rank + 1;
  }
}

/// \brief Attributes of version 2 of the projective op.
constexpr float kLeast = 0.7F;
inline std::vector<float> offset(const Case& c) {
  return c.rank == 2 ? std::vector<float>{0.1F, -0.2F} : std::vector<float>{0.1F, -0.2F, 0.3F};
}

inline int32_t inputs_of(const Case& c) {
  return reads_grid(c) ? 2 : c.kind == STN_TENSOR_PRODUCT ? 5 : c.kind == STN_LATTICE ? 4 : 3;
}

inline Attributes attributes(const Case& c) {
  static const char* const kModes[] = {"bilinear", "nearest", "bicubic"};
  static const char* const kPaddings[] = {"zeros", "border", "reflection"};
  Attributes result;
  if (c.creator == 0) result.word("kind", c.kind == STN_AFFINE ? "affine" : "basis");
  result.word("mode", kModes[c.mode]);
  result.word("padding_mode", kPaddings[c.padding]);
  result.integers("align_corners", {c.align_corners});
  if (!reads_grid(c)) {
    std::vector<int32_t> shape = {0};
    for (const int64_t size : output_size(c)) shape.push_back(static_cast<int32_t>(size));
    shape.push_back(c.rank);
    result.integers("grid_shape", shape);
  }
  if (c.creator == kProjective2) {
    result.floats("w_min", {kLeast});
    result.floats("offset", offset(c));
  }
  return result;
}

inline PluginTensorDesc desc(const std::vector<int64_t>& shape, DataType type, TensorFormat format) {
  PluginTensorDesc result{};
  result.dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) result.dims.d[i] = shape[i];
  result.type = type;
  result.format = format;
  return result;
}

inline DynamicPluginTensorDesc dynamic(const PluginTensorDesc& from) {
  DynamicPluginTensorDesc result{};
  result.desc = from;
  result.min = result.opt = result.max = from.dims;
  return result;
}

/// \brief Inputs, then the output, for a batch; -1: the batch is unknown.
inline std::vector<PluginTensorDesc> descs(const Case& c, int64_t batch, const std::vector<int64_t>& image_size) {
  std::vector<int64_t> image = {batch, c.channels};
  std::vector<int64_t> out = image;
  int64_t points = 1;
  for (const int64_t size : image_size) image.push_back(size);
  for (const int64_t size : output_size(c)) {
    out.push_back(size);
    points *= size;
  }
  std::vector<PluginTensorDesc> result = {desc(image, c.type, c.input_format)};
  if (reads_grid(c)) {
    std::vector<int64_t> grid = output_size(c);
    grid.insert(grid.begin(), batch);
    grid.push_back(c.rank);
    result.push_back(desc(grid, DataType::kFLOAT, TensorFormat::kLINEAR));
  } else {
    const int64_t rows = c.kind == STN_PROJECTIVE ? c.rank + 1 : c.rank;
    result.push_back(desc({batch, rows, columns(c)}, DataType::kFLOAT, TensorFormat::kLINEAR));
    const auto constant = [&result](int64_t first, int64_t second, DataType type = DataType::kFLOAT) {
      result.push_back(desc({first, second}, type, TensorFormat::kLINEAR));
    };
    if (c.kind == STN_TENSOR_PRODUCT) {
      const std::vector<int64_t> sizes = output_size(c), points_of = lattice(c);
      constant(c.rank == 3 ? sizes[0] : 1, points_of[0]);
      constant(sizes[sizes.size() - 2], points_of[1]);
      constant(points_of[2], sizes.back());
    } else if (c.kind == STN_LATTICE) {
      constant(kTaps, points, DataType::kINT32);
      constant(kTaps, points);
    } else {
      constant(columns(c), points);
    }
  }
  result.push_back(desc(out, c.type, c.output_format));
  return result;
}

inline size_t element_size(DataType type) { return type == DataType::kFLOAT || type == DataType::kINT32 ? 4 : 2; }

inline size_t byte_size(const PluginTensorDesc& d) {
  size_t size = element_size(d.type);
  for (int32_t i = 0; i < d.dims.nbDims; ++i) size *= static_cast<size_t>(d.dims.d[i]);
  return size;
}

/// \brief Values around 1 for images (any layout, any type), in [-1.3, 1.3] for coordinates; in [0.5, 1] for 16-bit
/// ones.
inline std::vector<char> random_bytes(const PluginTensorDesc& d, bool image, std::mt19937& random) {
  std::vector<char> bytes(byte_size(d));
  const size_t size = element_size(d.type);
  for (size_t i = 0; i < bytes.size(); i += size) {
    if (d.type == DataType::kINT32) {
      const auto index = static_cast<int32_t>(random() % 6);
      std::memcpy(&bytes[i], &index, size);
    } else if (d.type == DataType::kFLOAT) {
      const float value =
          image ? static_cast<float>(random() % 1000) / 500.0F : static_cast<float>(random() % 2600) / 1000.0F - 1.3F;
      std::memcpy(&bytes[i], &value, size);
    } else {
      const bool half = d.type == DataType::kHALF;
      const uint32_t first = half ? (image ? 0x3c00U : 0x3800U) : (image ? 0x3f80U : 0x3f00U);
      const auto bits = static_cast<uint16_t>(first + random() % (half ? 0x400U : 0x80U));
      std::memcpy(&bytes[i], &bits, size);
    }
  }
  return bytes;
}

inline float value_at(const std::vector<char>& bytes, size_t i, DataType type) {
  if (type == DataType::kFLOAT) {
    float value = 0;
    std::memcpy(&value, &bytes[i * 4], 4);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, &bytes[i * 2], 2);
  if (type == DataType::kBF16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16U;
    float value = 0;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = (bits >> 10U) & 31;
  const float fraction = static_cast<float>(bits & 0x3ffU) / 1024.0F;
  const float size = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1.0F + fraction, exponent - 15);
  return (bits & 0x8000U) != 0 ? -size : size;
}

}  // namespace cases

#endif  // STN_TESTS_TENSORRT_CASES_HPP_
