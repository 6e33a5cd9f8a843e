#include "tensorrt_problem.hpp"

#include <algorithm>
#include <cstring>

namespace stn::trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace {

constexpr int64_t kPaddedTo = 8;
constexpr int64_t kMostTaps = 64;

bool fits(int64_t a, int64_t b) noexcept { return a < 0 || b < 0 || a == b; }

const char* check_grid(const Dims& image, const Dims& grid, const Dims* out) noexcept {
  const int32_t rank = image.nbDims - 2;
  if (grid.nbDims != image.nbDims) return "the grid must have the same number of axes as the image";
  if (!fits(grid.d[0], image.d[0])) return "the grid and the image have different batch sizes";
  if (!fits(grid.d[rank + 1], rank)) return "the grid's last axis must have one coordinate per spatial axis";
  for (int32_t i = 0; out != nullptr && i < rank; ++i) {
    if (!fits(out->d[i + 2], grid.d[i + 1])) return "the output size does not match the grid";
  }
  return nullptr;
}

/// Checks a lattice's matrices: planes [Do, d], rows [Ho, h] and columns [w, Wo], and theta with d h w points.
const char* check_matrices(const Config& config, int64_t count, const Dims* constants) noexcept {
  const int32_t rank = config.rank();
  const Dims &planes = constants[0], &rows = constants[1], &columns = constants[2];
  const int64_t depth = rank == 3 ? config.out_size[0] : 1;
  const int64_t height = config.out_size[static_cast<size_t>(rank - 2)];
  const int64_t width = config.out_size[static_cast<size_t>(rank - 1)];
  if (planes.nbDims != 2 || rows.nbDims != 2 || columns.nbDims != 2) return "planes, rows and columns must be matrices";
  if (!fits(planes.d[0], depth) || !fits(rows.d[0], height) || !fits(columns.d[1], width)) {
    return "planes, rows and columns must match grid_shape";
  }
  const int64_t d = planes.d[1], h = rows.d[1], w = columns.d[0];
  if (rank == 2 && !fits(d, 1)) return "the lattice of an image must have one plane";
  if (d < 0 || h < 0 || w < 0 || count < 0) return nullptr;
  // Divisions, because a product might overflow.
  const bool same = d > 0 && h > 0 && w > 0 && count % d == 0 && count / d % h == 0 && count / d / h == w;
  return same ? nullptr : "theta must have as many points as planes, rows and columns have";
}

const char* check_taps(const Dims& index, const Dims& weight, int64_t points) noexcept {
  if (index.nbDims != 2 || weight.nbDims != 2 || !fits(index.d[0], weight.d[0]))
    return "index and weight must be [J, P]";
  if (index.d[0] == 0 || index.d[0] > kMostTaps) return "index must have 1 to 64 rows";
  const bool points_fit = fits(index.d[1], points) && fits(weight.d[1], points);
  return points_fit ? nullptr : "index and weight must have one column per point of grid_shape";
}

const char* check_theta(const Config& config, const Dims& image, const Dims& theta, const Dims* constants,
                        const Dims* out) noexcept {
  const int32_t rank = config.rank();
  const int64_t rows = config.kind == STN_PROJECTIVE ? rank + 1 : rank;
  if (theta.nbDims != 3 || !fits(theta.d[1], rows)) return "theta must be [N, D, K] (projective: [N, D + 1, K])";
  if (theta.d[2] == 0) return "theta must have at least one column";
  if (!fits(theta.d[0], image.d[0])) return "theta and the image have different batch sizes";
  int64_t points = 1;
  for (int32_t i = 0; i < rank; ++i) {
    const int64_t size = config.out_size[static_cast<size_t>(i)];
    if (__builtin_mul_overflow(points, size, &points)) return "grid_shape has too many points";
    if (out != nullptr && !fits(out->d[i + 2], size)) return "the output size does not match grid_shape";
  }
  if (config.kind == STN_TENSOR_PRODUCT) return check_matrices(config, theta.d[2], constants);
  if (config.kind == STN_LATTICE) return check_taps(constants[0], constants[1], points);
  const Dims& basis = constants[0];
  if (basis.nbDims != 2 || !fits(basis.d[0], theta.d[2])) return "basis must be [K, P] with the K of theta";
  const bool any_basis = config.kind == STN_BASIS || config.op == Op::kProjective2;
  if (!any_basis && !fits(theta.d[2], rank + 1)) return "theta must have D + 1 columns for this kind";
  return fits(basis.d[1], points) ? nullptr : "basis must have one column per point of grid_shape";
}

}  // namespace

bool layout_of(const PluginTensorDesc& desc, stn_layout& layout) noexcept {
  const bool half = desc.type == DataType::kHALF || desc.type == DataType::kBF16;
  const int32_t rank = desc.dims.nbDims - 2;
  layout = STN_CHANNELS_LAST;
  switch (desc.format) {
    case TensorFormat::kLINEAR:
      layout = STN_PLANAR;
      return true;
    case TensorFormat::kHWC:
      return rank == 2 && desc.type == DataType::kFLOAT;
    case TensorFormat::kDHWC:
      return rank == 3 && desc.type == DataType::kFLOAT;
    case TensorFormat::kHWC8:
      return rank == 2 && half && desc.dims.d[1] > 0 && desc.dims.d[1] % kPaddedTo == 0;
    case TensorFormat::kDHWC8:
      return rank == 3 && half && desc.dims.d[1] > 0 && desc.dims.d[1] % kPaddedTo == 0;
    default:
      return false;
  }
}

bool dtype_of(DataType type, stn_dtype& dtype) noexcept {
  switch (type) {
    case DataType::kFLOAT:
      dtype = STN_FP32;
      return true;
    case DataType::kHALF:
      dtype = STN_FP16;
      return true;
    case DataType::kBF16:
      dtype = STN_BF16;
      return true;
    default:
      return false;
  }
}

const char* check_shapes(const Config& config, const Dims* in, const Dims* out) noexcept {
  const Dims& image = in[0];
  const int32_t rank = image.nbDims - 2;
  if (rank != 2 && rank != 3) return "the image must be [N, C, H, W] or [N, C, D, H, W]";
  if (config.rank() != 0 && config.rank() != rank) return "the image's rank does not match grid_shape";
  if (config.mode == STN_BICUBIC && rank != 2) return "bicubic needs an image [N, C, H, W]";
  if (out != nullptr) {
    if (out->nbDims != image.nbDims) return "the output must have the same number of axes as the image";
    if (!fits(out->d[0], image.d[0])) return "the output and the image have different batch sizes";
    if (!fits(out->d[1], image.d[1])) return "the output and the image have different numbers of channels";
  }
  if (reads_grid(config.op)) return check_grid(image, in[1], out);
  return check_theta(config, image, in[1], in + 2, out);
}

const char* fill(const Config& config, const PluginTensorDesc* in, const PluginTensorDesc& out,
                 stn_problem& problem) noexcept {
  std::memset(&problem, 0, sizeof problem);
  stn_dtype dtype = STN_FP32;
  stn_dtype coordinates = STN_FP32;
  stn_layout input_layout = STN_PLANAR;
  stn_layout output_layout = STN_PLANAR;
  if (!dtype_of(in[0].type, dtype) || out.type != in[0].type) return "image and output must be fp32, fp16 or bf16";
  if (!dtype_of(in[1].type, coordinates)) return "theta and grid must be fp32, fp16 or bf16";
  if (!reads_grid(config.op) && coordinates != STN_FP32) return "theta must be fp32";
  if (!layout_of(in[0], input_layout) || !layout_of(out, output_layout)) return "unsupported tensor format";

  problem.struct_size = sizeof problem;
  problem.rank = in[0].dims.nbDims - 2;
  problem.kind = config.kind;
  problem.mode = config.mode;
  problem.padding = config.padding;
  problem.align_corners = config.align_corners;
  problem.dtype = dtype;
  problem.grid_dtype = coordinates;
  problem.input_layout = input_layout;
  problem.output_layout = output_layout;
  problem.batch = in[0].dims.d[0];
  problem.channels = in[0].dims.d[1];
  problem.points = reads_grid(config.op) ? 1 : config.kind == STN_TENSOR_PRODUCT ? 0 : in[2].dims.d[1];
  for (int32_t i = 0; i < problem.rank; ++i) {
    problem.input_size[i] = in[0].dims.d[i + 2];
    problem.output_size[i] = out.dims.d[i + 2];
    if (reads_grid(config.op)) problem.points *= in[1].dims.d[i + 1];
  }
  problem.basis_rows = reads_grid(config.op) ? 0 : in[1].dims.d[2];
  if (config.kind == STN_TENSOR_PRODUCT) {
    problem.lattice[0] = in[2].dims.d[1];
    problem.lattice[1] = in[3].dims.d[1];
    problem.lattice[2] = in[4].dims.d[0];
  }
  problem.taps = config.kind == STN_LATTICE ? in[2].dims.d[0] : 0;
  if (config.op == Op::kProjective2) {
    problem.clamp_w = 1;
    problem.w_min = config.w_min;
    std::copy(config.offset.begin(), config.offset.end(), problem.offset);
  }
  problem.theta_batch = problem.batch;
  problem.input_batch = problem.batch;
  return nullptr;
}

}  // namespace stn::trt
