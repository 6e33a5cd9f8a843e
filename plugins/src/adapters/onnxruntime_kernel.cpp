/// \file onnxruntime_kernel.cpp
/// \brief Attributes and inputs of an onnxruntime node to a stn_problem, and running it.
#include <cmath>
#include <initializer_list>
#include <new>
#include <string>

#include "kernels/cpu.hpp"
#include "kernels/cuda.hpp"
#include "kernels/warp.hpp"
#include "onnxruntime_op.hpp"
#include "stn/stn.h"

namespace stn::ort {
namespace {

constexpr size_t kMostInputs = 5;

/// A node's attributes.
struct Settings {
  const Op* op;
  int32_t kind, mode, padding, align_corners;
  int32_t rank;  ///< of the output in grid_shape; 0 for a Sampler, whose grid has it
  int64_t output_size[3];
  bool clamps;  ///< a projective op of version 2
  float w_min;
  float offset[3];  ///< zeros in version 1
};

/// An input's data and shape.
struct Tensor {
  void* data = nullptr;
  int64_t size[8] = {};
  size_t rank = 0;

  /// "[2, 3, 8, 9]"
  std::string shape() const {
    std::string text = "[";
    for (size_t d = 0; d < rank; ++d) text += (d == 0 ? "" : ", ") + std::to_string(size[d]);
    return text + "]";
  }
};

Status* reject(const Op& op, const std::string& what) {
  const std::string message = std::string("stn::") + name_of(op.kind) + ": " + what;
  return op.api->create_status(kInvalidArgument, message.c_str());
}

/// The index of `value` in `names` or in `others`, the alternative spellings; -1 if it is in neither.
int32_t find(const std::string& value, std::initializer_list<const char*> names,
             std::initializer_list<const char*> others = {}) {
  for (const auto& spellings : {names, others}) {
    int32_t index = 0;
    for (const char* name : spellings) {
      if (value == name) return index;
      ++index;
    }
  }
  return -1;
}

/// A string attribute; `fallback` if the node does not have it.
std::string text_attribute(const Api& api, const KernelInfo* info, const char* name, const char* fallback) {
  size_t size = 0;
  Status* status = api.attribute_string(info, name, nullptr, &size);
  if (status == nullptr && size > 0) {
    std::string value(size, '\0');
    status = api.attribute_string(info, name, &value[0], &size);
    if (status == nullptr) return value.substr(0, size - 1);  // onnxruntime counts the terminating NUL
  }
  if (status != nullptr) api.release(status);
  return fallback;
}

/// grid_shape = [0, (D,) H, W, rank]
Status* read_grid_shape(const Op& op, const KernelInfo* info, Settings* settings) {
  const Api& api = *op.api;
  size_t count = 0;
  int64_t shape[5] = {};
  if (Status* status = api.attribute_ints(info, "grid_shape", nullptr, &count)) return status;
  if (count != 4 && count != 5) return reject(op, "expected grid_shape [0, H, W, 2] or [0, D, H, W, 3]");
  if (Status* status = api.attribute_ints(info, "grid_shape", shape, &count)) return status;
  settings->rank = static_cast<int32_t>(count) - 2;
  if (shape[count - 1] != settings->rank) return reject(op, "the last entry of grid_shape must be the rank");
  int64_t pixels = 1;
  for (int d = 0; d < settings->rank; ++d) {
    settings->output_size[d] = shape[d + 1];
    if (shape[d + 1] < 0 || __builtin_mul_overflow(pixels, shape[d + 1], &pixels)) {
      return reject(op, "expected sizes in grid_shape that are at least 0 and whose product fits in 64 bits");
    }
  }
  if (settings->rank == 3 && settings->mode == STN_BICUBIC) return reject(op, "bicubic is for images only");
  return nullptr;
}

/// Reads the op's version, and rejects one that this library does not know when the file is loaded: onnxruntime matches
/// ops by their names alone, so a newer node would run as if it were of version 1.
Status* read_version(const Op& op, const KernelInfo* info, int* version) {
  const std::string text = text_attribute(*op.api, info, "plugin_version", "1");
  const int newest = stn_op_version(name_of(op.kind));
  const bool number = !text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
  *version = number ? std::stoi(text) : 0;
  if (*version < 1) return reject(op, "expected a plugin_version from 1 on, got '" + text + "'");
  if (*version <= newest) return nullptr;
  return reject(op, "the file has version " + text + " of this op, libstn_plugins " + stn_version() +
                        " knows it up to version " + std::to_string(newest) +
                        ": update stn-infer and build the library again, or run the file without the library");
}

/// w_min and offset: every node of version 2 has both of them, and none of version 1.
Status* read_quotient(const Op& op, const KernelInfo* info, int version, Settings* settings) {
  Status* status = op.api->attribute_float(info, "w_min", &settings->w_min);
  settings->clamps = status == nullptr;
  if (status != nullptr) op.api->release(status);
  size_t count = 0;
  status = op.api->attribute_floats(info, "offset", nullptr, &count);
  if (status != nullptr) {
    op.api->release(status);
    count = 0;
  }
  if (version == 1) {
    return settings->clamps || count != 0 ? reject(op, "w_min and offset need plugin_version 2, got 1") : nullptr;
  }
  if (!settings->clamps) return reject(op, "expected a w_min, which every node of version 2 has");
  if (std::isnan(settings->w_min)) return reject(op, "expected a w_min that is a number, got NaN");
  if (count != static_cast<size_t>(settings->rank)) {
    return reject(op,
                  "expected an offset of " + std::to_string(settings->rank) + " numbers, got " + std::to_string(count));
  }
  if (Status* failed = op.api->attribute_floats(info, "offset", settings->offset, &count)) return failed;
  for (size_t d = 0; d < count; ++d) {
    if (!std::isfinite(settings->offset[d])) return reject(op, "expected an offset of finite numbers");
  }
  return nullptr;
}

Status* read_settings(const Op& op, const KernelInfo* info, Settings* settings) {
  const Api& api = *op.api;
  settings->op = &op;
  int version = 1;
  if (Status* status = read_version(op, info, &version)) return status;
  const std::string mode = text_attribute(api, info, "mode", "bilinear");
  const std::string padding = text_attribute(api, info, "padding_mode", "zeros");
  settings->mode = find(mode, {"bilinear", "nearest", "bicubic"}, {"linear", "nearest", "cubic"});
  settings->padding = find(padding, {"zeros", "border", "reflection"});
  if (settings->mode < 0) return reject(op, "expected mode bilinear, nearest or bicubic, got " + mode);
  if (settings->padding < 0) return reject(op, "expected padding_mode zeros, border or reflection, got " + padding);
  int64_t align = 0;
  if (Status* status = api.attribute_int(info, "align_corners", &align)) {
    api.release(status);
    align = 0;
  }
  settings->align_corners = align != 0;
  if (op.kind == OpKind::kSampler) {
    settings->kind = STN_GRID;
    return nullptr;
  }
  const std::string kind = op.kind == OpKind::kSpatial ? text_attribute(api, info, "kind", "basis") : "";
  switch (op.kind) {
    case OpKind::kProjective:
      settings->kind = STN_PROJECTIVE;
      break;
    case OpKind::kTensorProduct:
      settings->kind = STN_TENSOR_PRODUCT;
      break;
    case OpKind::kLattice:
      settings->kind = STN_LATTICE;
      break;
    default:
      settings->kind = find(kind, {"affine", "basis"});
  }
  if (settings->kind < 0) return reject(op, "expected kind affine or basis, got " + kind);
  if (Status* status = read_grid_shape(op, info, settings)) return status;
  return op.kind == OpKind::kProjective ? read_quotient(op, info, version, settings) : nullptr;
}

Status* read_input(const Op& op, KernelContext* context, size_t index, Tensor* tensor) {
  const Api& api = *op.api;
  const Value* value = nullptr;
  TensorInfo* info = nullptr;
  if (Status* status = api.input(context, index, &value)) return status;
  if (Status* status = api.tensor_info(value, &info)) return status;
  Status* status = api.dimensions_count(info, &tensor->rank);
  if (status == nullptr && tensor->rank > 8) status = reject(op, "an input has more than eight axes");
  if (status == nullptr) status = api.dimensions(info, tensor->size, tensor->rank);
  api.release(info);
  if (status != nullptr) return status;
  return api.tensor_data(const_cast<Value*>(value), &tensor->data);
}

/// Checks a basis [K, pixels] against theta, and sets its fields.
Status* pose_basis(const Op& op, const Tensor& theta, const Tensor& basis, int64_t pixels, stn_problem* p) {
  if (basis.rank != 2 || basis.size[0] != theta.size[2] || basis.size[1] != pixels) {
    return reject(op, "expected basis [" + std::to_string(theta.size[2]) + ", " + std::to_string(pixels) +
                          "] for theta " + theta.shape() + " and grid_shape, got " + basis.shape());
  }
  p->points = basis.size[1];
  p->basis = static_cast<const float*>(basis.data);
  return nullptr;
}

/// Checks a lattice's matrices against theta and the output, and sets their fields.
Status* pose_matrices(const Settings& s, const Tensor* constants, const Tensor& theta, stn_problem* p) {
  const Op& op = *s.op;
  const Tensor &planes = constants[0], &rows = constants[1], &columns = constants[2];
  const int64_t depth = s.rank == 3 ? s.output_size[0] : 1;
  const int64_t height = s.output_size[s.rank - 2], width = s.output_size[s.rank - 1];
  const bool matrices = planes.rank == 2 && rows.rank == 2 && columns.rank == 2;
  if (!matrices || planes.size[0] != depth || rows.size[0] != height || columns.size[1] != width) {
    return reject(op, "expected planes [" + std::to_string(depth) + ", d], rows [" + std::to_string(height) +
                          ", h] and columns [w, " + std::to_string(width) + "] for grid_shape, got " + planes.shape() +
                          ", " + rows.shape() + " and " + columns.shape());
  }
  // Divisions, because a product might overflow.
  const int64_t d = planes.size[1], h = rows.size[1], w = columns.size[0], count = theta.size[2];
  const bool fits = d > 0 && h > 0 && w > 0 && count % d == 0 && count / d % h == 0 && count / d / h == w;
  if (!fits || (s.rank == 2 && d != 1)) {
    return reject(op, "expected theta with as many points as planes " + planes.shape() + ", rows " + rows.shape() +
                          " and columns " + columns.shape() + " have, got " + theta.shape());
  }
  p->lattice[0] = d;
  p->lattice[1] = h;
  p->lattice[2] = w;
  p->planes = static_cast<const float*>(planes.data);
  p->rows = static_cast<const float*>(rows.data);
  p->columns = static_cast<const float*>(columns.data);
  return nullptr;
}

/// Checks index and weight against the output, and sets their fields.
Status* pose_taps(const Op& op, const Tensor& index, const Tensor& weight, int64_t pixels, stn_problem* p) {
  const bool same = index.rank == 2 && weight.rank == 2 && index.size[0] == weight.size[0];
  if (!same || index.size[0] < 1 || index.size[0] > 64 || index.size[1] != pixels || weight.size[1] != pixels) {
    return reject(op, "expected index and weight [J, " + std::to_string(pixels) +
                          "] for grid_shape, J from 1 to 64, got " + index.shape() + " and " + weight.shape());
  }
  p->taps = index.size[0];
  p->points = pixels;
  p->index = static_cast<const int32_t*>(index.data);
  p->basis = static_cast<const float*>(weight.data);
  return nullptr;
}

/// Checks theta and the constants after it against the image, and sets their fields.
Status* pose_theta(const Settings& s, const Tensor* inputs, stn_problem* p) {
  const Tensor &image = inputs[0], &theta = inputs[1];
  const Op& op = *s.op;
  const int64_t rows = s.kind == STN_PROJECTIVE ? s.rank + 1 : s.rank;
  if (image.rank != static_cast<size_t>(s.rank) + 2) {
    return reject(op,
                  "expected an input of " + std::to_string(s.rank + 2) + " axes for grid_shape, got " + image.shape());
  }
  if (theta.rank != 3 || theta.size[0] != image.size[0] || theta.size[1] != rows) {
    return reject(op, "expected theta [" + std::to_string(image.size[0]) + ", " + std::to_string(rows) + ", K], got " +
                          theta.shape());
  }
  int64_t pixels = 1;
  for (int d = 0; d < s.rank; ++d) {
    p->output_size[d] = s.output_size[d];
    pixels *= s.output_size[d];
  }
  if (theta.size[2] == 0) return reject(op, "expected theta with at least one column, got " + theta.shape());
  p->basis_rows = theta.size[2];
  if (s.kind == STN_TENSOR_PRODUCT) return pose_matrices(s, inputs + 2, theta, p);
  if (s.kind == STN_LATTICE) return pose_taps(op, inputs[2], inputs[3], pixels, p);
  return pose_basis(op, theta, inputs[2], pixels, p);
}

/// Checks the grid against the image, and sets its fields.
Status* pose_grid(const Settings& s, const Tensor& image, const Tensor& grid, stn_problem* p) {
  const Op& op = *s.op;
  const size_t rank = image.rank - 2;
  if (image.rank != 4 && image.rank != 5) {
    return reject(op, "expected an input [N, C, H, W] or [N, C, D, H, W], got " + image.shape());
  }
  if (grid.rank != image.rank || grid.size[0] != image.size[0] || grid.size[rank + 1] != static_cast<int64_t>(rank)) {
    const char* sizes = rank == 2 ? ", H, W, 2]" : ", D, H, W, 3]";
    return reject(op, "expected a grid [" + std::to_string(image.size[0]) + sizes + " for the input " + image.shape() +
                          ", got " + grid.shape());
  }
  if (rank == 3 && s.mode == STN_BICUBIC) return reject(op, "bicubic is for images only");
  p->points = 1;
  for (size_t d = 0; d < rank; ++d) {
    p->output_size[d] = grid.size[d + 1];
    p->points *= grid.size[d + 1];
  }
  return nullptr;
}

/// Checks the inputs' shapes and fills in the problem.
Status* pose(const Settings& s, const Tensor* inputs, stn_problem* p) {
  const Tensor &image = inputs[0], &coordinates = inputs[1];
  *p = stn_problem{};
  p->struct_size = sizeof(stn_problem);
  Status* status = s.kind == STN_GRID ? pose_grid(s, image, coordinates, p) : pose_theta(s, inputs, p);
  if (status != nullptr) return status;
  p->rank = static_cast<int32_t>(image.rank) - 2;
  p->kind = s.kind;
  p->mode = s.mode;
  p->padding = s.padding;
  p->align_corners = s.align_corners;
  p->clamp_w = s.clamps ? 1 : 0;
  p->w_min = s.w_min;
  for (int d = 0; d < 3; ++d) p->offset[d] = s.offset[d];
  p->dtype = s.op->dtype;
  p->grid_dtype = s.op->grid_dtype;
  p->batch = p->input_batch = p->theta_batch = image.size[0];
  p->channels = image.size[1];
  for (int d = 0; d < p->rank; ++d) p->input_size[d] = image.size[d + 2];
  p->input = image.data;
  p->theta = coordinates.data;
  return nullptr;
}

struct CpuWork {
  CpuPlan plan;
  int64_t piece;
};

/// Runs on the session's threads, so that its thread settings apply.
Status* run_on_cpu(const Api& api, KernelContext* context, const Warp& warp) {
  CpuWork work{plan_cpu(warp), 0};
  const CpuPlan& plan = work.plan;
  if (plan.run == nullptr) return api.create_status(kFail, "out of memory");
  constexpr int64_t kMostPieces = 128;
  work.piece = plan.grain;
  if (plan.units > work.piece * kMostPieces) work.piece = plan.units / kMostPieces + 1;
  const int64_t pieces = (plan.units + work.piece - 1) / work.piece;
  if (pieces <= 1) {
    plan.run(plan, 0, plan.units);
    return nullptr;
  }
  const auto run = [](void* data, size_t index) {
    const CpuWork& w = *static_cast<const CpuWork*>(data);
    const int64_t begin = static_cast<int64_t>(index) * w.piece;
    const int64_t end = begin + w.piece < w.plan.units ? begin + w.piece : w.plan.units;
    w.plan.run(w.plan, begin, end);
  };
  return api.parallel_for(context, run, static_cast<size_t>(pieces), 0, &work);
}

/// Sets `info` to the output's shape: the image's batch and channels, then the grid's sizes. `known` is whether all of
/// them are known.
Status* describe_output(const Op& op, const ShapeInferContext* context, TensorInfo* info, bool* known) {
  const Api& api = *op.api;
  TensorInfo *image = nullptr, *grid = nullptr;
  size_t rank = 0, grid_rank = 0;
  int64_t sizes[5] = {}, points[5] = {};
  const char *names[5] = {}, *point_names[5] = {};
  if (Status* status = api.inferred_input(context, 0, &image)) return status;
  if (Status* status = api.dimensions_count(image, &rank)) return status;
  // An input of unknown shape has no axes here. Inconsistent shapes are rejected when the kernel runs.
  if (rank != 4 && rank != 5) return nullptr;
  if (op.kind == OpKind::kSampler) {
    if (Status* status = api.inferred_input(context, 1, &grid)) return status;
    if (Status* status = api.dimensions_count(grid, &grid_rank)) return status;
    if (grid_rank != rank) return nullptr;
    if (Status* status = api.dimensions(grid, points, rank)) return status;
    if (Status* status = api.symbolic_dimensions(grid, point_names, rank)) return status;
  } else {
    const OpAttribute* attribute = nullptr;
    size_t bytes = 0;
    if (Status* status = api.inferred_attribute(context, "grid_shape", &attribute)) return status;
    if (Status* status = api.read_attribute(attribute, kAttributeInts, points, sizeof points, &bytes)) return status;
    if (bytes != rank * sizeof(int64_t)) return nullptr;
  }
  if (Status* status = api.dimensions(image, sizes, rank)) return status;
  if (Status* status = api.symbolic_dimensions(image, names, rank)) return status;
  *known = true;
  for (size_t d = 0; d < rank; ++d) {
    if (d >= 2) {
      sizes[d] = points[d - 1];
      names[d] = point_names[d - 1];
    }
    if (names[d] == nullptr) names[d] = "";
    *known = *known && (sizes[d] >= 0 || names[d][0] != '\0');
  }
  ElementType type = kUndefined;
  if (Status* status = api.element_type(image, &type)) return status;
  if (Status* status = api.set_element_type(info, type)) return status;
  if (Status* status = api.set_dimensions(info, sizes, rank)) return status;
  return api.set_symbolic_dimensions(info, names, rank);
}

}  // namespace

Status* create_kernel(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  Settings* settings = new (std::nothrow) Settings{};
  if (settings == nullptr) return api->create_status(kFail, "out of memory");
  Status* status = read_settings(self(op), info, settings);
  if (status != nullptr) {
    delete settings;
    return status;
  }
  *kernel = settings;
  return nullptr;
}

void destroy_kernel(void* kernel) { delete static_cast<Settings*>(kernel); }

Status* compute(void* kernel, KernelContext* context) {
  const Settings& s = *static_cast<const Settings*>(kernel);
  const Op& op = *s.op;
  const Api& api = *op.api;
  Tensor inputs[kMostInputs];
  for (size_t i = 0; i < inputs_of(op.kind); ++i) {
    if (Status* status = read_input(op, context, i, &inputs[i])) return status;
  }
  const Tensor& image = inputs[0];
  stn_problem problem;
  if (Status* status = pose(s, inputs, &problem)) return status;

  const int64_t* size = problem.output_size;
  int64_t shape[5] = {image.size[0], image.size[1], size[0], size[1], size[2]};
  Value* output = nullptr;
  if (Status* status = api.output(context, 0, shape, image.rank, &output)) return status;
  if (Status* status = api.tensor_data(output, &problem.output)) return status;

  Warp warp;
  int result = make_warp(&problem, &warp);
  if (result == STN_OK && !op.cuda) return run_on_cpu(api, context, warp);
  if (result == STN_OK) {
    void* stream = nullptr;
    if (Status* status = api.gpu_stream(context, &stream)) return status;
    result = run_cuda(warp, stream);
  }
  return result == STN_OK ? nullptr : reject(op, stn_status_text(result));
}

Status* infer_shape(const CustomOp* op, ShapeInferContext* context) {
  const Api& api = *self(op).api;
  TensorInfo* info = nullptr;
  bool known = false;
  if (Status* status = api.create_tensor_info(&info)) return status;
  Status* status = describe_output(self(op), context, info, &known);
  if (status == nullptr && known) status = api.infer_output(context, 0, info);
  api.release(info);
  if (status != nullptr) api.release(status);
  return nullptr;
}

}  // namespace stn::ort
