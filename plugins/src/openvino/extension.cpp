/// \file extension.cpp
/// \brief `stn::SpatialTransformer`, `stn::ProjectiveTransformer` (versions 1 and 2) and `stn::Sampler` as an OpenVINO
/// extension.
///
/// OpenVINO's ONNX importer knows no model-local functions: it takes a node of domain `stn` by the conversions below,
/// and ignores the function of that name. OpenVINO runs the nodes of an extension on its own threads; a batch is split
/// over them, and fewer images than threads go to the library's threads.
///
/// The extension uses OpenVINO's C++ classes, so it works only in the version that it was compiled for.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <openvino/core/op_extension.hpp>
#include <openvino/core/parallel.hpp>
#include <openvino/core/version.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <vector>

#include "stn/stn.h"

namespace stn::openvino {
namespace {

/// The index of `value` in `names` or in `others`, the alternative spellings; -1 if it is in neither.
int32_t find(const std::string& value, std::initializer_list<const char*> names,
             std::initializer_list<const char*> others = {}) {
  for (const auto& list : {names, others}) {
    int32_t index = 0;
    for (const char* name : list) {
      if (value == name) return index;
      ++index;
    }
  }
  return -1;
}

/// A node's attributes, as in the ONNX file.
struct Settings {
  std::string kind = "basis", mode = "bilinear", padding_mode = "zeros";
  int64_t align_corners = 0;
  int64_t version = 1;                               ///< of the op
  float w_min = -std::numeric_limits<float>::max();  ///< version 2: the least denominator
  std::vector<float> offset;                         ///< version 2: rank numbers
  std::vector<int64_t> grid_shape;                   ///< [0, (D,) H, W, rank]
};

/// What all ops do; kind "grid" is the Sampler, whose second input is the grid.
class Transformer : public ov::op::Op {
 public:
  Transformer() = default;
  Transformer(const ov::OutputVector& inputs, Settings settings) : Op(inputs), settings_(std::move(settings)) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    const Settings& s = settings_;
    NODE_VALIDATION_CHECK(this, mode() >= 0, "expected mode bilinear, nearest or bicubic, got ", s.mode);
    NODE_VALIDATION_CHECK(this, padding() >= 0, "expected padding_mode zeros, border or reflection, got ",
                          s.padding_mode);
    if (reads_grid()) {
      validate_grid();
      return;
    }
    const auto rank = static_cast<int64_t>(s.grid_shape.size()) - 2;
    NODE_VALIDATION_CHECK(this, get_input_size() == 3, "expected the inputs input, theta and basis");
    NODE_VALIDATION_CHECK(this, rank == 2 || rank == 3, "expected grid_shape [0, H, W, 2] or [0, D, H, W, 3]");
    NODE_VALIDATION_CHECK(this, s.grid_shape.back() == rank, "the last entry of grid_shape must be the rank");
    NODE_VALIDATION_CHECK(this, find(s.kind, {"affine", "basis", "projective"}) >= 0,
                          "expected kind affine or basis, got ", s.kind);
    NODE_VALIDATION_CHECK(this, s.w_min == s.w_min, "expected a w_min that is a number, got NaN");
    const size_t numbers = s.version == 1 ? 0 : static_cast<size_t>(rank);
    NODE_VALIDATION_CHECK(this, s.offset.size() == numbers, "expected an offset of ", numbers, " numbers, got ",
                          s.offset.size());
    for (float value : s.offset) {
      NODE_VALIDATION_CHECK(this, std::isfinite(value), "expected an offset of finite numbers, got ", value);
    }
    NODE_VALIDATION_CHECK(this, rank == 2 || mode() != STN_BICUBIC, "bicubic is for images only");
    for (int64_t size : s.grid_shape) {
      NODE_VALIDATION_CHECK(this, size >= 0, "expected sizes in grid_shape that are at least 0, got ", size);
    }
    for (size_t index : {1, 2}) {
      NODE_VALIDATION_CHECK(this, get_input_element_type(index).compatible(ov::element::f32),
                            "theta and basis are float32");
    }
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_dynamic()) shape = ov::PartialShape::dynamic(rank + 2);
    NODE_VALIDATION_CHECK(this, shape.rank().get_length() == rank + 2, "the rank of input does not match grid_shape");
    for (int64_t d = 0; d < rank; ++d) shape[d + 2] = s.grid_shape[d + 1];
    set_output_type(0, get_input_element_type(0), shape);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("kind", settings_.kind);
    visitor.on_attribute("mode", settings_.mode);
    visitor.on_attribute("padding_mode", settings_.padding_mode);
    visitor.on_attribute("align_corners", settings_.align_corners);
    visitor.on_attribute("grid_shape", settings_.grid_shape);
    visitor.on_attribute("plugin_version", settings_.version);
    visitor.on_attribute("w_min", settings_.w_min);
    visitor.on_attribute("offset", settings_.offset);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    ov::Shape shape = inputs[0].get_shape();
    stn_problem problem = pose(inputs, shape);
    const size_t coordinate = inputs[1].get_element_type().size();
    outputs[0].set_shape(shape);
    problem.output = outputs[0].data();
    const int status = run(problem, inputs[0].get_element_type().size(), coordinate);
    OPENVINO_ASSERT(status == STN_OK, get_type_info().name, ": ", stn_status_text(status));
    return true;
  }

 protected:
  const Settings& settings() const { return settings_; }

 private:
  bool reads_grid() const { return settings_.kind == "grid"; }

  void validate_grid() {
    NODE_VALIDATION_CHECK(this, get_input_size() == 2, "expected the inputs input and grid");
    ov::PartialShape shape = get_input_partial_shape(0);
    const ov::PartialShape grid = get_input_partial_shape(1);
    if (shape.rank().is_dynamic() && grid.rank().is_static()) shape = ov::PartialShape::dynamic(grid.rank());
    if (shape.rank().is_static()) {
      const int64_t axes = shape.rank().get_length();
      NODE_VALIDATION_CHECK(this, axes == 4 || axes == 5, "expected an input [N, C, H, W] or [N, C, D, H, W]");
      NODE_VALIDATION_CHECK(this, axes == 4 || mode() != STN_BICUBIC, "bicubic is for images only");
      NODE_VALIDATION_CHECK(this, grid.rank().compatible(axes), "the grid has another number of axes than the input");
      for (int64_t d = 2; d < axes; ++d) shape[d] = grid.rank().is_static() ? grid[d - 1] : ov::Dimension::dynamic();
    }
    set_output_type(0, get_input_element_type(0), shape);
  }

  int32_t mode() const {
    return find(settings_.mode, {"bilinear", "nearest", "bicubic"}, {"linear", "nearest", "cubic"});
  }
  int32_t padding() const { return find(settings_.padding_mode, {"zeros", "border", "reflection"}); }

  static int32_t dtype_of(const char* what, const ov::Tensor& tensor) {
    const ov::element::Type type = tensor.get_element_type();
    const bool half = type == ov::element::f16 || type == ov::element::bf16;
    OPENVINO_ASSERT(half || type == ov::element::f32, what, " is float32, float16 or bfloat16, not ", type);
    return type == ov::element::f32 ? STN_FP32 : type == ov::element::f16 ? STN_FP16 : STN_BF16;
  }

  /// Checks the inputs' shapes, and describes the warp; `shape` becomes the output's.
  stn_problem pose(const ov::TensorVector& inputs, ov::Shape& shape) const {
    const Settings& s = settings_;
    stn_problem p{};
    p.struct_size = sizeof p;
    p.kind = find(s.kind, {"affine", "basis", "projective", "grid"});
    p.mode = mode();
    p.padding = padding();
    p.align_corners = s.align_corners != 0;
    p.clamp_w = s.version == 1 ? 0 : 1;
    p.w_min = s.w_min;
    for (size_t d = 0; d < s.offset.size(); ++d) p.offset[d] = s.offset[d];
    p.dtype = dtype_of("input", inputs[0]);
    p.input = inputs[0].data();
    p.theta = inputs[1].data();
    if (reads_grid()) {
      pose_grid(inputs, shape, p);
    } else {
      pose_theta(inputs, shape, p);
    }
    return p;
  }

  void pose_grid(const ov::TensorVector& inputs, ov::Shape& shape, stn_problem& p) const {
    const ov::Shape& grid = inputs[1].get_shape();
    OPENVINO_ASSERT(shape.size() == 4 || shape.size() == 5, "expected an input [N, C, H, W] or [N, C, D, H, W]");
    const size_t rank = shape.size() - 2;
    OPENVINO_ASSERT(grid.size() == rank + 2 && grid[0] == shape[0] && grid.back() == rank,
                    "expected a grid [N, H, W, 2] or [N, D, H, W, 3] for the input ", shape, ", got ", grid);
    p.grid_dtype = dtype_of("grid", inputs[1]);
    p.rank = static_cast<int32_t>(rank);
    p.batch = p.input_batch = p.theta_batch = static_cast<int64_t>(shape[0]);
    p.channels = static_cast<int64_t>(shape[1]);
    p.points = 1;
    for (size_t d = 0; d < rank; ++d) {
      p.input_size[d] = static_cast<int64_t>(shape[d + 2]);
      p.output_size[d] = static_cast<int64_t>(grid[d + 1]);
      shape[d + 2] = grid[d + 1];
      p.points *= p.output_size[d];
    }
  }

  void pose_theta(const ov::TensorVector& inputs, ov::Shape& shape, stn_problem& p) const {
    const Settings& s = settings_;
    const ov::Shape &theta = inputs[1].get_shape(), &basis = inputs[2].get_shape();
    const size_t rank = s.grid_shape.size() - 2;
    p.rank = static_cast<int32_t>(rank);
    const size_t rows = p.kind == STN_PROJECTIVE ? rank + 1 : rank;
    OPENVINO_ASSERT(shape.size() == rank + 2, "the rank of input does not match grid_shape");
    OPENVINO_ASSERT(theta.size() == 3 && theta[1] == rows && theta[2] != 0,
                    "theta is [N, D, K], or [N, D + 1, K] if projective, not ", theta);
    OPENVINO_ASSERT(basis.size() == 2 && basis[0] == theta[2], "basis is [K, P] with the K of theta, not ", basis);
    OPENVINO_ASSERT(theta[0] == shape[0], "input and theta have different batch sizes");
    p.batch = p.input_batch = p.theta_batch = static_cast<int64_t>(shape[0]);
    p.channels = static_cast<int64_t>(shape[1]);
    size_t pixels = 1;
    for (size_t d = 0; d < rank; ++d) {
      p.input_size[d] = static_cast<int64_t>(shape[d + 2]);
      p.output_size[d] = s.grid_shape[d + 1];
      shape[d + 2] = static_cast<size_t>(s.grid_shape[d + 1]);
      pixels *= shape[d + 2];
    }
    OPENVINO_ASSERT(basis[1] == pixels, "the P of basis [K, P] does not match grid_shape");
    p.basis_rows = static_cast<int64_t>(theta[2]);
    p.points = static_cast<int64_t>(basis[1]);
    p.basis = inputs[2].data<float>();
  }

  /// Runs a problem on the threads that OpenVINO gave this node; `element` and `coordinate` are bytes of an element.
  static int run(const stn_problem& problem, size_t element, size_t coordinate) {
    const int checked = stn_check(&problem);
    if (checked != STN_OK || problem.batch == 0) return checked;
    const int threads = parallel_get_max_threads();
    if (threads <= 1 || problem.batch < threads) return stn_run_cpu(&problem, std::max(threads, 1));
    int64_t in = problem.channels, out = problem.channels;
    for (int32_t d = 0; d < problem.rank; ++d) {
      in *= problem.input_size[d];
      out *= problem.output_size[d];
    }
    constexpr int64_t kTaskWork = 8192;  // a smaller task costs more than it saves
    const int64_t least = std::max<int64_t>(1, kTaskWork / std::max<int64_t>(out, 1));
    const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(4 * threads, problem.batch / least));
    const int64_t columns = problem.kind == STN_GRID ? problem.points : problem.basis_rows;
    const int64_t theta = (problem.rank + (problem.kind == STN_PROJECTIVE ? 1 : 0)) * columns;
    std::atomic<int> worst{STN_OK};
    ov::parallel_for(pieces, [&](int64_t piece) {
      const int64_t begin = problem.batch * piece / pieces, end = problem.batch * (piece + 1) / pieces;
      stn_problem part = problem;
      part.batch = part.input_batch = part.theta_batch = end - begin;
      part.input = static_cast<const char*>(problem.input) + begin * in * static_cast<int64_t>(element);
      part.output = static_cast<char*>(problem.output) + begin * out * static_cast<int64_t>(element);
      part.theta = static_cast<const char*>(problem.theta) + begin * theta * static_cast<int64_t>(coordinate);
      if (const int status = stn_run_cpu(&part, 1); status != STN_OK) worst = status;
    });
    return worst;
  }

  Settings settings_;
};

class SpatialTransformer : public Transformer {
 public:
  OPENVINO_OP("SpatialTransformer", "stn");
  using Transformer::Transformer;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<SpatialTransformer>(inputs, settings());
  }
};

class ProjectiveTransformer : public Transformer {
 public:
  OPENVINO_OP("ProjectiveTransformer", "stn");
  using Transformer::Transformer;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<ProjectiveTransformer>(inputs, settings());
  }
};

class Sampler : public Transformer {
 public:
  OPENVINO_OP("Sampler", "stn");
  using Transformer::Transformer;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<Sampler>(inputs, settings());
  }
};

/// The version of a node's op; a newer one is rejected, instead of running as an older one.
int64_t version_of(const ov::frontend::NodeContext& node, const char* name) {
  const auto text = node.get_attribute<std::string>("plugin_version", "1");
  const bool projective = std::strcmp(name, "ProjectiveTransformer") == 0;
  const int64_t newest = projective ? STN_PROJECTIVE_VERSION : 1;
  const bool number = !text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
  const int64_t version = number ? std::stoll(text) : 0;
  OPENVINO_ASSERT(version >= 1, name, ": expected a plugin_version from 1 on, got '", text, "'");
  OPENVINO_ASSERT(version <= newest, name, ": the file has version ", version,
                  " of this op, the OpenVINO extension of stn-infer knows it up to version ", newest,
                  ": update stn-infer and build the extension again");
  const bool any = node.has_attribute("w_min") || node.has_attribute("offset");
  const bool both = node.has_attribute("w_min") && node.has_attribute("offset");
  OPENVINO_ASSERT(version == 2 ? both : !any, name,
                  ": w_min and offset are attributes of every node of version 2, and of none of version 1");
  return version;
}

/// Floats of an ONNX node, which OpenVINO stores as doubles.
std::vector<float> floats_of(const ov::Any& value) {
  if (value.is<std::vector<float>>()) return value.as<std::vector<float>>();
  std::vector<float> result;
  for (double number : value.as<std::vector<double>>()) result.push_back(static_cast<float>(number));
  return result;
}

/// Imports ONNX nodes `stn::<name>`; `kind` replaces the attribute where the op has none.
template <class T>
ov::Extension::Ptr conversion(const char* name, const char* kind = nullptr) {
  return std::make_shared<ov::frontend::onnx::ConversionExtension>(
      name, "stn", [name, kind](const ov::frontend::NodeContext& node) -> ov::OutputVector {
        Settings settings;
        settings.kind = kind != nullptr ? kind : node.get_attribute<std::string>("kind", settings.kind);
        settings.mode = node.get_attribute<std::string>("mode", settings.mode);
        settings.padding_mode = node.get_attribute<std::string>("padding_mode", settings.padding_mode);
        settings.align_corners = node.get_attribute<int64_t>("align_corners", settings.align_corners);
        settings.version = version_of(node, name);
        settings.w_min = node.get_attribute<float>("w_min", settings.w_min);
        if (node.has_attribute("offset")) settings.offset = floats_of(node.get_attribute_as_any("offset"));
        if (settings.kind != "grid") settings.grid_shape = node.get_attribute<std::vector<int64_t>>("grid_shape");
        ov::OutputVector inputs;
        for (size_t index = 0; index < node.get_input_size(); ++index) inputs.push_back(node.get_input(int(index)));
        return {std::make_shared<T>(inputs, settings)};
      });
}

std::vector<ov::Extension::Ptr> extensions() {
  const char* running = ov::get_openvino_version().buildNumber;
  OPENVINO_ASSERT(std::strcmp(running, STN_OPENVINO_VERSION) == 0, "libstn_openvino.so was built for OpenVINO ",
                  STN_OPENVINO_VERSION, ", this is ", running, ": run stn-infer plugin build --openvino");
  return {
      std::make_shared<ov::OpExtension<SpatialTransformer>>(),
      std::make_shared<ov::OpExtension<ProjectiveTransformer>>(),
      std::make_shared<ov::OpExtension<Sampler>>(),
      conversion<SpatialTransformer>("SpatialTransformer"),
      conversion<ProjectiveTransformer>("ProjectiveTransformer", "projective"),
      conversion<Sampler>("Sampler", "grid"),
  };
}

}  // namespace
}  // namespace stn::openvino

OPENVINO_CREATE_EXTENSIONS(stn::openvino::extensions())
