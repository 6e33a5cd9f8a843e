/// \file cuda_taps.hpp
/// \brief On the device: an output pixel's sampling point, and the image pixels that it reads.
#ifndef STN_KERNELS_CUDA_TAPS_HPP_
#define STN_KERNELS_CUDA_TAPS_HPP_

#include <cuda_runtime.h>

#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {
namespace {

/// The output pixel of a thread.
struct Pixel {
  int64_t sample;
  int64_t index;
};

struct Parts {
  int64_t quotient;
  int64_t remainder;
};

/// Quotient and remainder of a dividend below `limit`. Uses 32-bit division if possible, which is several times faster.
__device__ __forceinline__ Parts split(int64_t dividend, int64_t divisor, int64_t limit) {
  if (limit < (int64_t{1} << 31)) {
    // Divisors are factors of the limit, so they fit in 32 bits too.
    const uint32_t quotient = static_cast<uint32_t>(dividend) / static_cast<uint32_t>(divisor);
    return {quotient, dividend - static_cast<int64_t>(quotient) * divisor};
  }
  return {dividend / divisor, dividend % divisor};
}

template <int Rank>
__device__ __forceinline__ Point<Scalar> pixel_center_of(const Warp& w, int64_t pixel) {
  Point<Scalar> at;
  // 32-bit division is several times faster, and most images are small enough.
  if (w.pixels < (int64_t{1} << 31)) {
    const uint32_t p = static_cast<uint32_t>(pixel), columns = static_cast<uint32_t>(w.out_size[0]);
    const uint32_t line = p / columns;
    const uint32_t slice = Rank == 3 ? line / static_cast<uint32_t>(w.out_size[1]) : 0;
    at.at[0] = pixel_center<Scalar>(static_cast<int32_t>(p - line * columns), w.out_size[0], w.inverse_out_size[0]);
    const int32_t y = static_cast<int32_t>(line - slice * static_cast<uint32_t>(w.out_size[1]));
    at.at[1] = pixel_center<Scalar>(y, w.out_size[1], w.inverse_out_size[1]);
    at.at[2] = Rank == 3 ? pixel_center<Scalar>(static_cast<int32_t>(slice), w.out_size[2], w.inverse_out_size[2]) : 0;
    return at;
  }
  const int64_t line = pixel / w.out_size[0], slice = Rank == 3 ? line / w.out_size[1] : 0;
  at.at[0] =
      pixel_center<Scalar>(static_cast<int32_t>(pixel - line * w.out_size[0]), w.out_size[0], w.inverse_out_size[0]);
  at.at[1] =
      pixel_center<Scalar>(static_cast<int32_t>(line - slice * w.out_size[1]), w.out_size[1], w.inverse_out_size[1]);
  at.at[2] = Rank == 3 ? pixel_center<Scalar>(static_cast<int32_t>(slice), w.out_size[2], w.inverse_out_size[2]) : 0;
  return at;
}

template <int Rank, class T>
__device__ __forceinline__ Point<Scalar> grid_point(const Warp& w, Pixel pixel) {
  const T* from = static_cast<const T*>(w.theta) + pixel.sample * w.theta_stride + pixel.index * Rank;
  Point<Scalar> point;
  for (int d = 0; d < 3; ++d) point.at[d] = d < Rank ? to_float(from[d]) : 0.0f;
  return point;
}

/// Rows of theta times a column of the basis, added to `sum`.
template <int Rows>
__device__ __forceinline__ void add_basis(const Warp& w, Pixel pixel, float* sum) {
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  for (int32_t k = 0; k < w.rows; ++k) {
    const float b = __ldg(w.basis + k * w.pixels + pixel.index);
    for (int d = 0; d < Rows; ++d) sum[d] = vfma(__ldg(theta + d * w.rows + k), b, sum[d]);
  }
}

/// A lattice contracted with one matrix per axis; rows and planes that do not matter are skipped by whole warps.
template <int Rank>
__device__ __forceinline__ Point<Scalar> tensor_product_point(const Warp& w, Pixel pixel) {
  const int64_t row = pixel.index / w.out_size[0], x = pixel.index - row * w.out_size[0];
  const int64_t z = row / w.out_size[1], y = row - z * w.out_size[1];
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  Point<Scalar> sum{{0.0f, 0.0f, 0.0f}};
  for (int32_t k = 0; k < (Rank == 3 ? w.lattice[2] : 1); ++k) {
    const float plane = Rank == 3 ? __ldg(w.lattice_axes[2] + z * w.lattice[2] + k) : 1.0f;
    if (plane == 0.0f) continue;
    for (int32_t i = 0; i < w.lattice[1]; ++i) {
      const float weight = plane * __ldg(w.lattice_axes[1] + y * w.lattice[1] + i);
      if (weight == 0.0f) continue;
      const float* from = theta + (int64_t{k} * w.lattice[1] + i) * w.lattice[0];
      for (int32_t j = 0; j < w.lattice[0]; ++j) {
        const float of_column = weight * __ldg(w.lattice_axes[0] + int64_t{j} * w.out_size[0] + x);
        for (int d = 0; d < Rank; ++d) {
          sum.at[d] = vfma(__ldg(from + d * int64_t{w.rows} + j), of_column, sum.at[d]);
        }
      }
    }
  }
  return sum;
}

/// A few points of an irregular lattice.
template <int Rank>
__device__ __forceinline__ Point<Scalar> lattice_point(const Warp& w, Pixel pixel) {
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  Point<Scalar> sum{{0.0f, 0.0f, 0.0f}};
  for (int32_t t = 0; t < w.taps; ++t) {
    const int32_t at = min(max(__ldg(w.index + t * w.pixels + pixel.index), 0), w.rows - 1);
    const float weight = __ldg(w.basis + t * w.pixels + pixel.index);
    for (int d = 0; d < Rank; ++d) sum.at[d] = vfma(__ldg(theta + d * int64_t{w.rows} + at), weight, sum.at[d]);
  }
  return sum;
}

/// An output pixel's sampling point, in normalized coordinates.
template <int Rank>
__device__ __forceinline__ Point<Scalar> point_of(const Warp& w, Pixel pixel) {
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  switch (w.kind) {
    case STN_AFFINE:
      return affine_point<Scalar, Rank>(theta, pixel_center_of<Rank>(w, pixel.index));
    case STN_BASIS: {
      Point<Scalar> point{{0.0f, 0.0f, 0.0f}};
      add_basis<Rank>(w, pixel, point.at);
      return point;
    }
    case STN_PROJECTIVE: {
      if (w.basis == nullptr) {
        return projective_point<Scalar, Rank>(theta, pixel_center_of<Rank>(w, pixel.index), w.w_min, w.offset);
      }
      float sums[Rank + 1] = {};
      add_basis<Rank + 1>(w, pixel, sums);
      return divide<Scalar, Rank>(sums, w.w_min, w.offset);
    }
    case STN_TENSOR_PRODUCT:
      return tensor_product_point<Rank>(w, pixel);
    case STN_LATTICE:
      return lattice_point<Rank>(w, pixel);
    default:
      switch (w.grid_dtype) {
        case STN_FP32:
          return grid_point<Rank, float>(w, pixel);
        case STN_FP16:
          return grid_point<Rank, Half>(w, pixel);
        default:
          return grid_point<Rank, BFloat>(w, pixel);
      }
  }
}

/// The pixels that one output pixel reads, as offsets into a channel and weights; only `valid` ones are used.
template <int Count, class Offset>
struct Taps {
  Offset at[Count];
  float weight[Count];
  bool valid[Count];
};

template <class Offset>
__device__ __forceinline__ Offset offset_of(const Warp& w, int32_t x, int32_t y, int32_t z) {
  return (static_cast<Offset>(x) + static_cast<Offset>(y) * static_cast<Offset>(w.in_row) +
          static_cast<Offset>(z) * static_cast<Offset>(w.in_plane)) *
         static_cast<Offset>(w.in_pixel_stride);
}

/// Nearest: one tap.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<1, Offset>* taps) {
  int32_t index[3] = {0, 0, 0};
  bool valid = true;
  for (int d = 0; d < Rank; ++d) {
    const NearestTap<Scalar> tap = nearest_tap<Scalar>(unnormalize(point.at[d], w.axis[d]), w.axis[d], w.padding);
    index[d] = tap.index;
    valid = valid && tap.valid;
  }
  taps->at[0] = offset_of<Offset>(w, index[0], index[1], index[2]);
  taps->weight[0] = 1.0f;
  taps->valid[0] = valid;
}

/// Linear: 2^Rank taps.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<(1 << Rank), Offset>* taps) {
  LinearTap<Scalar> tap[3];
  for (int d = 0; d < Rank; ++d) {
    tap[d] = linear_tap<Scalar>(unnormalize(point.at[d], w.axis[d]), w.axis[d], w.padding);
  }
#pragma unroll
  for (int i = 0; i < (1 << Rank); ++i) {
    int32_t index[3] = {0, 0, 0};
    float weight = 1.0f;
    bool valid = true;
#pragma unroll
    for (int d = 0; d < Rank; ++d) {
      const bool high = (i >> d & 1) != 0;
      index[d] = tap[d].low + (high ? 1 : 0);
      weight *= high ? tap[d].weight_high : tap[d].weight_low;
      valid = valid && (high ? tap[d].valid_high : tap[d].valid_low);
    }
    taps->at[i] = offset_of<Offset>(w, index[0], index[1], index[2]);
    taps->weight[i] = weight;
    taps->valid[i] = valid;
  }
}

/// Bicubic: sixteen taps.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<16, Offset>* taps) {
  const CubicTap<Scalar> x = cubic_tap<Scalar>(unnormalize(point.at[0], w.axis[0]), w.axis[0], w.padding);
  const CubicTap<Scalar> y = cubic_tap<Scalar>(unnormalize(point.at[1], w.axis[1]), w.axis[1], w.padding);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    taps->at[i] = offset_of<Offset>(w, x.index[i % 4], y.index[i / 4], 0);
    taps->weight[i] = x.weight[i % 4] * y.weight[i / 4];
    taps->valid[i] = x.valid[i % 4] && y.valid[i / 4];
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_TAPS_HPP_
