#include "tensorrt_config.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

namespace stn::trt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

struct Word {
  const char* text;
  int32_t value;
};

// ONNX renamed two of the modes in opset 20; the first name of each value is the one that is serialized.
constexpr Word kModes[] = {{"bilinear", STN_BILINEAR},
                           {"nearest", STN_NEAREST},
                           {"bicubic", STN_BICUBIC},
                           {"linear", STN_BILINEAR},
                           {"cubic", STN_BICUBIC}};
constexpr Word kPaddings[] = {{"zeros", STN_ZEROS}, {"border", STN_BORDER}, {"reflection", STN_REFLECTION}};
constexpr Word kKinds[] = {{"affine", STN_AFFINE}, {"basis", STN_BASIS}};

/// A number in decimal digits that no other float has.
std::string exact(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}

template <size_t N>
const char* spell(const Word (&words)[N], int32_t value) {
  for (const Word& word : words) {
    if (word.value == value) return word.text;
  }
  return "";
}

std::string_view text_of(const PluginField& field) {
  if (field.type != PluginFieldType::kCHAR || field.data == nullptr || field.length < 0) return {};
  std::string_view text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  // Some callers include the terminating NUL in the length.
  while (!text.empty() && text.back() == '\0') text.remove_suffix(1);
  return text;
}

template <size_t N>
bool read_word(const PluginField& field, const Word (&words)[N], int32_t& value, std::string& reason) {
  const std::string_view text = text_of(field);
  for (const Word& word : words) {
    if (text == word.text) {
      value = word.value;
      return true;
    }
  }
  reason = std::string(field.name) + " is one of";
  for (const Word& word : words) reason += std::string(" ") + word.text;
  reason += ", not '" + std::string(text) + "'";
  return false;
}

std::optional<std::vector<int64_t>> integers(const PluginField& field) {
  if (field.data == nullptr || field.length < 1 || field.length > nvinfer1::Dims::MAX_DIMS) return std::nullopt;
  std::vector<int64_t> values(static_cast<size_t>(field.length));
  for (size_t i = 0; i < values.size(); ++i) {
    // Fields come from the bytes of a file, so their data may be unaligned.
    if (field.type == PluginFieldType::kINT32) {
      int32_t value = 0;
      std::memcpy(&value, static_cast<const char*>(field.data) + i * sizeof value, sizeof value);
      values[i] = value;
    } else if (field.type == PluginFieldType::kINT64) {
      std::memcpy(&values[i], static_cast<const char*>(field.data) + i * sizeof(int64_t), sizeof(int64_t));
    } else {
      return std::nullopt;
    }
  }
  return values;
}

/// 1 to 3 floats.
std::optional<std::vector<float>> floats(const PluginField& field) {
  if (field.type != PluginFieldType::kFLOAT32 || field.data == nullptr) return std::nullopt;
  if (field.length < 1 || field.length > 3) return std::nullopt;
  std::vector<float> values(static_cast<size_t>(field.length));
  std::memcpy(values.data(), field.data, values.size() * sizeof(float));  // may be unaligned, as above
  return values;
}

bool read_align_corners(const PluginField& field, Config& config, std::string& reason) {
  const auto values = integers(field);
  if (!values || values->size() != 1 || (values->front() != 0 && values->front() != 1)) {
    reason = "align_corners is one integer, 0 or 1";
    return false;
  }
  config.align_corners = static_cast<int32_t>(values->front());
  return true;
}

// [0, Ho, Wo, 2] or [0, Do, Ho, Wo, 3]; the 0 is the batch.
bool read_grid_shape(const PluginField& field, Config& config, std::string& reason) {
  const auto values = integers(field);
  const bool right = values && (values->size() == 4 || values->size() == 5) && values->front() == 0 &&
                     values->back() == static_cast<int64_t>(values->size()) - 2;
  if (right) {
    config.out_size.assign(values->begin() + 1, values->end() - 1);
    bool fits = true;
    for (const int64_t size : config.out_size) fits = fits && size >= 1 && size <= std::numeric_limits<int32_t>::max();
    if (fits) return true;
  }
  reason = "grid_shape is [0, height, width, 2] or [0, depth, height, width, 3], all sizes at least 1";
  return false;
}

bool read_w_min(const PluginField& field, Config& config, std::string& reason) {
  const auto values = floats(field);
  if (!values || values->size() != 1 || std::isnan(values->front())) {
    reason = "w_min is one number";
    return false;
  }
  config.w_min = values->front();
  return true;
}

/// Its length is compared with grid_shape's rank when all fields are read.
bool read_offset(const PluginField& field, Config& config, std::string& reason) {
  const auto values = floats(field);
  bool finite = values.has_value();
  for (size_t i = 0; finite && i < values->size(); ++i) finite = std::isfinite((*values)[i]);
  if (!finite) {
    reason = "offset is one finite number per axis";
    return false;
  }
  config.offset = *values;
  return true;
}

bool read_field(const PluginField& field, Config& config, std::string& reason) {
  const std::string_view name = field.name == nullptr ? "" : field.name;
  if (name == "mode") return read_word(field, kModes, config.mode, reason);
  if (name == "padding_mode") return read_word(field, kPaddings, config.padding, reason);
  if (name == "align_corners") return read_align_corners(field, config, reason);
  if (reads_grid(config.op)) return true;
  if (name == "grid_shape") return read_grid_shape(field, config, reason);
  if (config.op == Op::kProjective2 && name == "w_min") return read_w_min(field, config, reason);
  if (config.op == Op::kProjective2 && name == "offset") return read_offset(field, config, reason);
  if (config.op == Op::kSpatial && name == "kind") return read_word(field, kKinds, config.kind, reason);
  return true;
}

}  // namespace

const OpInfo& info(Op op) noexcept {
  static constexpr OpInfo kTable[] = {{"SpatialTransformer", "stn", "1", 3},
                                      {"ProjectiveTransformer", "stn", "1", 3},
                                      {"GridSample", "", "1", 2},
                                      {"Sampler", "stn", "1", 2},
                                      {"TensorProductTransformer", "stn", "1", 5},
                                      {"LatticeTransformer", "stn", "1", 4},
                                      {"ProjectiveTransformer", "stn", "2", 3}};
  return kTable[static_cast<size_t>(op)];
}

std::string Config::text() const {
  std::string line = info(op).name;
  if (op == Op::kSpatial) line += std::string(" ") + spell(kKinds, kind);
  line += std::string(" ") + spell(kModes, mode) + " " + spell(kPaddings, padding);
  line += align_corners != 0 ? " align_corners" : " half_pixel";
  for (size_t i = 0; i < out_size.size(); ++i) line += (i == 0 ? " " : "x") + std::to_string(out_size[i]);
  if (op == Op::kProjective2) {
    line += " w_min " + exact(w_min) + " offset";
    for (const float value : offset) line += " " + exact(value);
  }
  return line;
}

Config default_config(Op op) {
  Config config;
  config.op = op;
  if (op == Op::kProjective || op == Op::kProjective2) config.kind = STN_PROJECTIVE;
  if (op == Op::kTensorProduct) config.kind = STN_TENSOR_PRODUCT;
  if (op == Op::kLattice) config.kind = STN_LATTICE;
  if (reads_grid(op)) config.kind = STN_GRID;
  if (!reads_grid(op)) config.out_size = {1, 1};
  if (op == Op::kProjective2) config.offset = {0.0F, 0.0F};
  return config;
}

bool parse(Op op, const nvinfer1::PluginFieldCollection* fields, Config& config, std::string& reason) {
  Config read = default_config(op);
  read.out_size.clear();
  read.offset.clear();
  if (fields != nullptr && fields->nbFields > 0 && fields->fields == nullptr) {
    reason = "the fields are missing";
    return false;
  }
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    if (!read_field(fields->fields[i], read, reason)) return false;
  }
  if (!reads_grid(op) && read.out_size.empty()) {
    reason = "grid_shape is missing";
    return false;
  }
  if (op == Op::kProjective && read.rank() != 2) {
    reason = "a projective transformer of version 1 is two-dimensional, but grid_shape has three sizes";
    return false;
  }
  if (op == Op::kProjective2 && read.offset.empty()) read.offset.resize(read.out_size.size());
  if (op == Op::kProjective2 && read.offset.size() != read.out_size.size()) {
    reason = "offset is one finite number per axis of grid_shape, not " + std::to_string(read.offset.size());
    return false;
  }
  if (read.mode == STN_BICUBIC && read.rank() == 3) {
    reason = "bicubic is two-dimensional, but grid_shape has three sizes";
    return false;
  }
  config = read;
  return true;
}

Fields::Fields(const Config& config)
    : align_corners_(config.align_corners), w_min_(config.w_min), offset_(config.offset), collection_{} {
  const auto add_word = [this](const char* name, const char* word) {
    fields_.emplace_back(name, word, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(word)));
  };
  if (config.op == Op::kSpatial) add_word("kind", spell(kKinds, config.kind));
  add_word("mode", spell(kModes, config.mode));
  add_word("padding_mode", spell(kPaddings, config.padding));
  fields_.emplace_back("align_corners", &align_corners_, PluginFieldType::kINT32, 1);
  if (!reads_grid(config.op)) {
    grid_shape_.push_back(0);
    for (const int64_t size : config.out_size) grid_shape_.push_back(static_cast<int32_t>(size));
    grid_shape_.push_back(config.rank());
    fields_.emplace_back("grid_shape", grid_shape_.data(), PluginFieldType::kINT32,
                         static_cast<int32_t>(grid_shape_.size()));
  }
  if (config.op == Op::kProjective2) {
    fields_.emplace_back("w_min", &w_min_, PluginFieldType::kFLOAT32, 1);
    fields_.emplace_back("offset", offset_.data(), PluginFieldType::kFLOAT32, static_cast<int32_t>(offset_.size()));
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

void log(const std::string& line) noexcept {
  static const bool wanted = [] {
    const char* value = std::getenv("STN_LOG");
    return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
  }();
  if (wanted) std::fprintf(stderr, "stn: %s\n", line.c_str());
}

}  // namespace stn::trt
