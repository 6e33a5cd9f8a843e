#include "kernels/warp.hpp"

#include <cmath>
#include <initializer_list>
#include <limits>

namespace stn {
namespace {

// Pixel indices are 32-bit integers, computed from floats that may be a little outside of the image.
constexpr int64_t kLargestSide = int64_t{1} << 30;
// A sample's theta, of up to four rows, is indexed in 32 bits.
constexpr int64_t kMostRows = int64_t{1} << 28;
constexpr int64_t kMostTaps = 64;

bool within(int32_t value, int32_t last) { return value >= 0 && value <= last; }

/// The product of sizes, or -1 if it overflows.
template <class... Sizes>
int64_t product(int64_t first, Sizes... rest) {
  int64_t result = first;
  bool overflow = first < 0;
  for (int64_t size : {static_cast<int64_t>(rest)...}) {
    overflow = overflow || size < 0 || __builtin_mul_overflow(result, size, &result);
  }
  return overflow ? -1 : result;
}

int check_enums(const stn_problem& p) {
  const bool known = (p.rank == 2 || p.rank == 3) && within(p.kind, STN_LATTICE) && within(p.mode, STN_BICUBIC) &&
                     within(p.padding, STN_REFLECTION) && within(p.align_corners, 1) && within(p.dtype, STN_BF16) &&
                     within(p.input_layout, STN_CHANNELS_LAST) && within(p.output_layout, STN_CHANNELS_LAST) &&
                     (p.kind != STN_GRID || within(p.grid_dtype, STN_BF16));
  if (!known) return STN_ERROR_VALUE;
  if (p.rank == 3 && p.mode == STN_BICUBIC) return STN_ERROR_VALUE;
  const bool known_clamp = within(p.clamp_w, 1) && (p.clamp_w == 0 || p.w_min == p.w_min);
  if (p.kind == STN_PROJECTIVE && !known_clamp) return STN_ERROR_VALUE;
  for (int d = 0; d < p.rank; ++d) {
    if (p.kind == STN_PROJECTIVE && !std::isfinite(p.offset[d])) return STN_ERROR_VALUE;
  }
  return STN_OK;
}

int check_sizes(const stn_problem& p) {
  if (p.batch < 0 || p.channels < 0) return STN_ERROR_SIZE;
  for (int d = 0; d < p.rank; ++d) {
    if (p.input_size[d] < 0 || p.output_size[d] < 0) return STN_ERROR_SIZE;
    if (p.input_size[d] > kLargestSide || p.output_size[d] > kLargestSide) return STN_ERROR_OVERFLOW;
  }
  if (p.theta_batch != p.batch && p.theta_batch != 1) return STN_ERROR_SIZE;
  if (p.input_batch != p.batch && p.input_batch != 1) return STN_ERROR_SIZE;
  if (p.kind == STN_AFFINE && p.basis_rows != p.rank + 1) return STN_ERROR_SIZE;
  bool no_points = false;  // the basis of no points may be NULL
  for (int d = 0; d < p.rank; ++d) no_points = no_points || p.output_size[d] == 0;
  const bool centers = p.kind == STN_PROJECTIVE && p.basis == nullptr && !no_points;
  if (centers && p.basis_rows != p.rank + 1) return STN_ERROR_SIZE;
  if ((p.kind == STN_BASIS || p.kind == STN_PROJECTIVE) && p.basis_rows < 1) return STN_ERROR_SIZE;
  if (p.kind != STN_GRID && p.basis_rows > kMostRows) return STN_ERROR_OVERFLOW;
  if (p.kind == STN_LATTICE && (p.basis_rows < 1 || p.taps < 1 || p.taps > kMostTaps)) return STN_ERROR_SIZE;
  if (p.kind == STN_TENSOR_PRODUCT) {
    const int64_t points = product(p.lattice[0], p.lattice[1], p.lattice[2]);
    if (points < 1 || points != p.basis_rows || (p.rank == 2 && p.lattice[0] != 1)) return STN_ERROR_SIZE;
  }
  const bool bad_pitch = (p.channel_pitch_in != 0 && p.channel_pitch_in < p.channels) ||
                         (p.channel_pitch_out != 0 && p.channel_pitch_out < p.channels);
  return bad_pitch ? STN_ERROR_SIZE : STN_OK;
}

bool lattice_is_missing(const stn_problem& p) {
  if (p.kind == STN_LATTICE) return p.index == nullptr || p.basis == nullptr;
  const bool planes = p.rank == 3 && p.planes == nullptr;
  return p.kind == STN_TENSOR_PRODUCT && (planes || p.rows == nullptr || p.columns == nullptr);
}

int64_t pitch(int32_t layout, int64_t given, int64_t channels) {
  return layout == STN_CHANNELS_LAST && given != 0 ? given : channels;
}

}  // namespace

int make_warp(const stn_problem* problem, Warp* warp) {
  if (problem == nullptr) return STN_ERROR_POINTER;
  if (problem->struct_size != sizeof(stn_problem)) return STN_ERROR_STRUCT_SIZE;
  const stn_problem& p = *problem;
  if (int status = check_enums(p)) return status;
  if (int status = check_sizes(p)) return status;

  const int64_t depth_in = p.rank == 3 ? p.input_size[0] : 1, depth_out = p.rank == 3 ? p.output_size[0] : 1;
  const int64_t in_pixels = product(p.input_size[p.rank - 1], p.input_size[p.rank - 2], depth_in);
  const int64_t pixels = product(p.output_size[p.rank - 1], p.output_size[p.rank - 2], depth_out);
  const int64_t pitch_in = pitch(p.input_layout, p.channel_pitch_in, p.channels);
  const int64_t pitch_out = pitch(p.output_layout, p.channel_pitch_out, p.channels);
  // Assuming eight bytes per element covers every type, so that addresses do not overflow either.
  const bool fits = in_pixels >= 0 && pixels >= 0 && product(8, p.input_batch, pitch_in, in_pixels) >= 0 &&
                    product(8, p.batch, pitch_out, pixels) >= 0 && product(8, 3, pixels, p.theta_batch) >= 0 &&
                    (p.kind == STN_GRID ||
                     (product(8, p.basis_rows, pixels) >= 0 && product(8, 4, p.basis_rows, p.theta_batch) >= 0));
  if (!fits) return STN_ERROR_OVERFLOW;
  const bool reads_points = p.kind == STN_GRID || p.kind == STN_BASIS || p.kind == STN_LATTICE ||
                            (p.kind == STN_PROJECTIVE && p.basis != nullptr);
  if (p.points != pixels && (reads_points || p.points != 0)) return STN_ERROR_POINTS;

  const bool empty = p.batch == 0 || p.channels == 0 || pixels == 0;
  if (!empty) {
    if (in_pixels == 0) return STN_ERROR_SIZE;
    const bool missing =
        p.input == nullptr || p.theta == nullptr || p.output == nullptr || (p.kind == STN_BASIS && p.basis == nullptr);
    if (missing || lattice_is_missing(p)) return STN_ERROR_POINTER;
  }
  if (warp == nullptr) return STN_OK;

  Warp& w = *warp;
  w = Warp{};
  w.rank = p.rank;
  w.kind = p.kind;
  w.mode = p.mode;
  w.padding = p.padding;
  w.dtype = p.dtype;
  w.grid_dtype = p.grid_dtype;
  for (int d = 0; d < 3; ++d) {
    const bool used = d < p.rank;
    const int from = p.rank - 1 - d;  // x is the last axis of an image, and the first coordinate
    w.axis[d] = make_axis(used ? static_cast<int32_t>(p.input_size[from]) : 1, p.align_corners != 0);
    w.out_size[d] = used ? static_cast<int32_t>(p.output_size[from]) : 1;
    w.inverse_out_size[d] = w.out_size[d] > 0 ? 1.0f / static_cast<float>(w.out_size[d]) : 0.0f;
  }
  w.rows = p.kind == STN_GRID ? 0 : static_cast<int32_t>(p.basis_rows);
  w.w_min = p.kind == STN_PROJECTIVE && p.clamp_w != 0 ? p.w_min : -std::numeric_limits<float>::infinity();
  for (int d = 0; d < 3; ++d) w.offset[d] = p.kind == STN_PROJECTIVE && d < p.rank ? p.offset[d] : 0.0f;
  w.quotient = p.kind == STN_PROJECTIVE && p.clamp_w != 0;
  for (int d = 0; d < 3; ++d) w.quotient = w.quotient || w.offset[d] != 0.0f;
  w.batch = p.batch;
  w.channels = p.channels;
  w.pixels = pixels;
  w.in_row = w.axis[0].size;
  w.in_plane = w.in_row * w.axis[1].size;
  w.in_pixels = in_pixels;

  // One channel without padding is identical in both layouts.
  const bool last_in = p.input_layout == STN_CHANNELS_LAST && pitch_in != 1;
  const bool last_out = p.output_layout == STN_CHANNELS_LAST && pitch_out != 1;
  w.channels_last = last_in && last_out;
  w.mixed_layouts = last_in != last_out;
  w.in_pixel_stride = last_in ? pitch_in : 1;
  w.in_channel_stride = last_in ? 1 : in_pixels;
  w.in_batch_stride = p.input_batch == 1 && p.batch != 1 ? 0 : pitch_in * in_pixels;
  w.out_pixel_stride = last_out ? pitch_out : 1;
  w.out_channel_stride = last_out ? 1 : pixels;
  w.out_batch_stride = pitch_out * pixels;
  const int64_t theta_size = p.kind == STN_GRID         ? pixels * p.rank
                             : p.kind == STN_PROJECTIVE ? (p.rank + 1) * p.basis_rows
                                                        : p.rank * p.basis_rows;
  w.theta_stride = p.theta_batch == 1 && p.batch != 1 ? 0 : theta_size;
  w.input = p.input;
  w.theta = p.theta;
  w.basis = p.kind == STN_AFFINE ? nullptr : p.basis;
  if (p.kind == STN_TENSOR_PRODUCT) {
    const float* axes[3] = {p.columns, p.rows, p.rank == 3 ? p.planes : nullptr};
    for (int d = 0; d < 3; ++d) {
      w.lattice[d] = static_cast<int32_t>(p.lattice[2 - d]);
      w.lattice_axes[d] = axes[d];
    }
  }
  w.taps = p.kind == STN_LATTICE ? static_cast<int32_t>(p.taps) : 0;
  w.index = p.kind == STN_LATTICE ? p.index : nullptr;
  w.output = p.output;
  return STN_OK;
}

}  // namespace stn
