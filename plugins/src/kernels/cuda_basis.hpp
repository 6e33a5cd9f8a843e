/// \file cuda_basis.hpp
/// \brief The CUDA kernel for many samples on one basis, bilinear: each value of the basis is read once for several of
/// them, and each value of theta once for two pixels.
#ifndef STN_KERNELS_CUDA_BASIS_HPP_
#define STN_KERNELS_CUDA_BASIS_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_affine.hpp"
#include "kernels/cuda_layouts.hpp"
#include "kernels/cuda_pixels.hpp"
#include "kernels/cuda_tiles.hpp"

namespace stn {
namespace {

/// Samples and pixels of each that a thread computes together: sixteen sums.
constexpr int kTogether = 4, kLinesTogether = 2;

/// Where the next values of the basis, and of theta's rows, are.
struct BasisColumns {
  const float* basis[kLinesTogether];
  const float* theta[kTogether][2];
};

/// Adds `Rows` rows of the basis times theta to the sums.
template <int Rows>
__device__ __forceinline__ void add_rows(const Warp& w, BasisColumns* at, float (&sums)[kTogether][kLinesTogether][2]) {
  float basis[Rows][kLinesTogether];
#pragma unroll
  for (int k = 0; k < Rows; ++k) {
#pragma unroll
    for (int l = 0; l < kLinesTogether; ++l) {
      basis[k][l] = __ldg(at->basis[l]);
      at->basis[l] = kept(at->basis[l] + w.pixels);
    }
  }
#pragma unroll
  for (int s = 0; s < kTogether; ++s) {
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      const float* theta = at->theta[s][d];
      at->theta[s][d] = kept(theta + Rows);
#pragma unroll
      for (int k = 0; k < Rows; ++k) {
        const float value = __ldg(theta + k);
#pragma unroll
        for (int l = 0; l < kLinesTogether; ++l) sums[s][l][d] = vfma(value, basis[k][l], sums[s][l][d]);
      }
    }
  }
}

/// The points of one pixel and of the one `step` after it, in each of `count` samples.
__device__ __forceinline__ void basis_points(const Warp& w, const float* theta, int32_t count, int32_t index,
                                             int32_t step, float (&sums)[kTogether][kLinesTogether][2]) {
  BasisColumns at;
#pragma unroll
  for (int s = 0; s < kTogether; ++s) {
    // After the last sample, the last one again, whose sums are not used.
    const float* row = theta + min(s, count - 1) * w.theta_stride;
    at.theta[s][0] = kept(row);
    at.theta[s][1] = kept(row + w.rows);
#pragma unroll
    for (int l = 0; l < kLinesTogether; ++l) sums[s][l][0] = sums[s][l][1] = 0.0f;
  }
#pragma unroll
  for (int l = 0; l < kLinesTogether; ++l) at.basis[l] = kept(w.basis + index + l * step);
  int32_t left = w.rows;
#pragma unroll 1
  for (; left >= 2; left -= 2) add_rows<2>(w, &at, sums);
  if (left != 0) add_rows<1>(w, &at, sums);
}

/// An item is kTogether samples.
template <class Layout>
__global__ void __launch_bounds__(kThreads, 6) basis_kernel(const Warp w, const Tiles tiles) {
  // Each thread's own points: an array that a loop indexes, which would be in memory in any case.
  __shared__ float2 points[kTogether * kLinesTogether][kThreads];
  const Place<int32_t> place = place_of<int32_t, Layout::kPacked>(tiles);
  if (place.column >= w.out_size[0] || place.line >= place.after_lines) return;
  const int32_t lines = 1 << tiles.log_lines, batch = static_cast<int32_t>(w.batch);
  for (int32_t number = place.item; number < static_cast<int32_t>(tiles.items); number += place.item_step) {
    Item item = item_at<int32_t, Layout::kChunked>(w, tiles, number);
    const int32_t first = static_cast<int32_t>(item.sample) * kTogether, count = min(kTogether, batch - first);
    const float* theta = static_cast<const float*>(w.theta) + first * w.theta_stride;
    for (int32_t line = place.line; line < place.after_lines; line += kLinesTogether * lines) {
      const int32_t index = line * w.out_size[0] + place.column;
      const int32_t pixels = line + lines < place.after_lines ? kLinesTogether : 1;
      float sums[kTogether][kLinesTogether][2];
      basis_points(w, theta, count, index, pixels == 1 ? 0 : lines * w.out_size[0], sums);
#pragma unroll
      for (int i = 0; i < kTogether * kLinesTogether; ++i) {
        const float* sum = sums[i / kLinesTogether][i % kLinesTogether];
        points[i][threadIdx.x] = float2{sum[0], sum[1]};
      }
#pragma unroll 1
      for (int32_t s = 0; s < count; ++s) {
        item.sample = first + s;
        const Layout layout(w, tiles, item, place.pack);
        int32_t to = index * static_cast<int32_t>(w.out_pixel_stride);
#pragma unroll 1
        for (int32_t l = 0; l < pixels; ++l, to += tiles.out_step) {
          const float2 at = points[s * kLinesTogether + l][threadIdx.x];
          pixel_at<2, 4>(w, tiles, layout, {{at.x, at.y, 0.0f}}, to);
        }
      }
    }
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_BASIS_HPP_
