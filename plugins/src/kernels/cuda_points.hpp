/// \file cuda_points.hpp
/// \brief On the device: an output pixel's sampling point, for every kind.
#ifndef STN_KERNELS_CUDA_POINTS_HPP_
#define STN_KERNELS_CUDA_POINTS_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_layouts.hpp"
#include "kernels/cuda_tiles.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {
namespace {

/// The output pixel of a thread.
template <class Offset>
struct Pixel {
  int32_t x, y, z;
  Offset index;
};

/// 1 / w to within one unit in the last place.
__device__ __forceinline__ float near_reciprocal(float w) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(w));
  return result;
#else
  return 1.0f / w;
#endif
}

/// The perspective division, as in divide<>: one reciprocal for all coordinates, and for each a correction by the
/// remainder. It differs from IEEE division at most in the last bit.
template <int Rank>
__device__ __forceinline__ Point<Scalar> divide_together(const float* sums, float w_min, const float* offset) {
  const float w = vmax(w_min, sums[Rank]);
  if (!(fabsf(w) > 1e-30f && fabsf(w) < 1e30f)) return divide<Scalar, Rank>(sums, w_min, offset);
  float reciprocal = near_reciprocal(w);
  reciprocal = vfma(vfma(-w, reciprocal, 1.0f), reciprocal, reciprocal);
  Point<Scalar> point{{0.0f, 0.0f, 0.0f}};
#pragma unroll
  for (int d = 0; d < Rank; ++d) {
    const float quotient = sums[d] * reciprocal;
    point.at[d] = vfma(vfma(-w, quotient, sums[d]), reciprocal, quotient) + offset[d];
  }
  return point;
}

/// Reads a grid's point; `aligned`: both coordinates of a 2-D one in one access.
template <int Rank, class T>
__device__ __forceinline__ Point<Scalar> grid_point(const void* grid, int64_t index, bool aligned) {
  Point<Scalar> point{{0.0f, 0.0f, 0.0f}};
  const T* from = static_cast<const T*>(grid) + index * Rank;
  if constexpr (Rank == 2) {
    if (aligned) {
      load_pair(from, point.at);
      return point;
    }
  }
#pragma unroll
  for (int d = 0; d < Rank; ++d) point.at[d] = load(from + d);
  return point;
}

/// The sampling points of one sample. For affine and projective ones, theta is kept in registers.
template <int Rank, class Offset>
struct Points {
  float matrix[(Rank + 1) * (Rank + 1)];
  const void* theta;

  __device__ __forceinline__ Points(const Warp& w, const Tiles& tiles, int64_t sample) {
    const int64_t size = tiles.from_grid ? element_size(w.grid_dtype) : 4;
    theta = static_cast<const char*>(w.theta) + sample * w.theta_stride * size;
#pragma unroll
    for (int i = 0; i < (Rank + 1) * (Rank + 1); ++i) {
      const bool used = tiles.from_centers && (tiles.from_quotient || i < Rank * (Rank + 1));
      matrix[i] = used ? __ldg(floats() + i) : 0.0f;
    }
  }

  __device__ __forceinline__ const float* floats() const { return static_cast<const float*>(theta); }

  __device__ __forceinline__ Point<Scalar> at(const Warp& w, const Tiles& tiles, const Pixel<Offset>& pixel,
                                              float x_center) const {
    if (tiles.from_matrix) return affine_point<Scalar, Rank>(matrix, center(w, pixel, x_center));
    if (tiles.from_quotient) {
      float sums[Rank + 1] = {};
      if (tiles.from_centers) {
        projective_rows<Scalar, Rank>(matrix, center(w, pixel, x_center), sums);
      } else {
        add_basis<Rank + 1>(w, pixel.index, sums);
      }
      return divide_together<Rank>(sums, w.w_min, w.offset);
    }
    if (tiles.from_grid) {
      if (w.grid_dtype == STN_FP32) return grid_point<Rank, float>(theta, pixel.index, tiles.aligned_grid);
      if (w.grid_dtype == STN_FP16) return grid_point<Rank, Half>(theta, pixel.index, tiles.aligned_grid);
      return grid_point<Rank, BFloat>(theta, pixel.index, tiles.aligned_grid);
    }
    if (w.kind == STN_TENSOR_PRODUCT) return tensor_product_point(w, pixel);
    if (w.kind == STN_LATTICE) return lattice_point(w, pixel.index);
    Point<Scalar> point{{0.0f, 0.0f, 0.0f}};
    add_basis<Rank>(w, pixel.index, point.at);
    return point;
  }

 private:
  __device__ __forceinline__ Point<Scalar> center(const Warp& w, const Pixel<Offset>& pixel, float x_center) const {
    return {{x_center, pixel_center<Scalar>(pixel.y, w.out_size[1], w.inverse_out_size[1]),
             Rank == 3 ? pixel_center<Scalar>(pixel.z, w.out_size[2], w.inverse_out_size[2]) : 0.0f}};
  }

  /// Rows of theta times a column of the basis, added to `sum`.
  template <int Rows>
  __device__ __forceinline__ void add_basis(const Warp& w, Offset index, float* sum) const {
    const float *column = w.basis + index, *row = floats();
    for (int32_t k = 0; k < w.rows; ++k, column += w.pixels, ++row) {
      const float b = __ldg(column);
#pragma unroll
      for (int d = 0; d < Rows; ++d) sum[d] = vfma(__ldg(row + d * w.rows), b, sum[d]);
    }
  }

  /// A lattice contracted with one matrix per axis; rows and planes that do not matter are skipped by whole warps.
  __device__ __forceinline__ Point<Scalar> tensor_product_point(const Warp& w, const Pixel<Offset>& pixel) const {
    Point<Scalar> sum{{0.0f, 0.0f, 0.0f}};
    for (int32_t k = 0; k < (Rank == 3 ? w.lattice[2] : 1); ++k) {
      const float plane = Rank == 3 ? __ldg(w.lattice_axes[2] + int64_t{pixel.z} * w.lattice[2] + k) : 1.0f;
      if (plane == 0.0f) continue;
      for (int32_t i = 0; i < w.lattice[1]; ++i) {
        const float weight = plane * __ldg(w.lattice_axes[1] + int64_t{pixel.y} * w.lattice[1] + i);
        if (weight == 0.0f) continue;
        const float* from = floats() + (int64_t{k} * w.lattice[1] + i) * w.lattice[0];
        for (int32_t j = 0; j < w.lattice[0]; ++j) {
          const float of_column = weight * __ldg(w.lattice_axes[0] + int64_t{j} * w.out_size[0] + pixel.x);
#pragma unroll
          for (int d = 0; d < Rank; ++d) sum.at[d] = vfma(__ldg(from + d * int64_t{w.rows} + j), of_column, sum.at[d]);
        }
      }
    }
    return sum;
  }

  /// A few points of an irregular lattice.
  __device__ __forceinline__ Point<Scalar> lattice_point(const Warp& w, Offset index) const {
    Point<Scalar> sum{{0.0f, 0.0f, 0.0f}};
    for (int32_t t = 0; t < w.taps; ++t) {
      const int32_t at = min(max(__ldg(w.index + t * w.pixels + index), 0), w.rows - 1);
      const float weight = __ldg(w.basis + t * w.pixels + index);
#pragma unroll
      for (int d = 0; d < Rank; ++d) sum.at[d] = vfma(__ldg(floats() + d * int64_t{w.rows} + at), weight, sum.at[d]);
    }
    return sum;
  }
};

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_POINTS_HPP_
