/// \file warp.hpp
/// \brief A validated problem in the form that the kernels use: sizes in (x, y, z) order, strides, axes.
#ifndef STN_KERNELS_WARP_HPP_
#define STN_KERNELS_WARP_HPP_

#include <stdint.h>

#include "stn/sampling.hpp"
#include "stn/stn.h"

namespace stn {

struct Band;

/// The parameters of one warp; passed to CUDA kernels by value.
struct Warp {
  int32_t rank;
  int32_t kind;
  int32_t mode;
  int32_t padding;
  int32_t dtype;
  int32_t grid_dtype;
  bool channels_last;   ///< both images, with contiguous channels
  bool mixed_layouts;   ///< one planar, one channels-last
  bool quotient;        ///< whether a projective grid has w_min or offset; the CPU kernels then take a longer path
  Axis axis[3];         ///< the input's axes, in (x, y, z) order
  int32_t out_size[3];  ///< in (x, y, z) order; 1 beyond the rank
  float inverse_out_size[3];
  int32_t rows;        ///< K
  float w_min;         ///< the least denominator of a projective grid; -inf: any
  float offset[3];     ///< of a projective grid, after the division; else zeros
  int32_t lattice[3];  ///< in (x, y, z) order
  int32_t taps;        ///< lattice points per pixel
  int64_t batch;
  int64_t channels;
  int64_t pixels;     ///< P
  int64_t in_row;     ///< elements from one row (y) of a channel to the next, in pixels
  int64_t in_plane;   ///< likewise from one z to the next
  int64_t in_pixels;  ///< pixels of one input channel
  // Strides, in elements.
  int64_t in_batch_stride, in_channel_stride, in_pixel_stride;
  int64_t out_batch_stride, out_channel_stride, out_pixel_stride;
  int64_t theta_stride;  ///< 0 if the whole batch shares one theta
  const void* input;
  const void* theta;
  const float* basis;
  const float* lattice_axes[3];  ///< in (x, y, z) order: [lattice x, out x], [out y, lattice y], [out z, lattice z]
  const int32_t* index;
  const Band* bands;  ///< CPU: where the matrix of x is not zero, see cpu_points.hpp
  void* output;
};

/// Whether the sampling points come from a lattice, so that they are computed per row of pixels.
STN_HD bool from_lattice(int32_t kind) { return kind == STN_TENSOR_PRODUCT || kind == STN_LATTICE; }

/// \brief Checks a problem and fills in `warp`, unless it is NULL.
/// \return a stn_status.
int make_warp(const stn_problem* problem, Warp* warp);

/// Bytes of one element of a stn_dtype.
STN_HD int64_t element_size(int32_t dtype) { return dtype == STN_FP32 ? 4 : 2; }

}  // namespace stn

#endif  // STN_KERNELS_WARP_HPP_
