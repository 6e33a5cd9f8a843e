/// \file cuda_affine.hpp
/// \brief The CUDA kernel for the common case: affine, bilinear, images of fewer than 2^28 elements.
///
/// It computes the same as column_kernel. A coordinate is a linear function of the row, so that a thread, which walks
/// down a column, needs one multiplication for each.
#ifndef STN_KERNELS_CUDA_AFFINE_HPP_
#define STN_KERNELS_CUDA_AFFINE_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_layouts.hpp"
#include "kernels/cuda_pixels.hpp"
#include "kernels/cuda_tiles.hpp"

namespace stn {
namespace {

/// Resident blocks per multiprocessor, which allows 64 registers per thread. Without this bound the compiler uses 32 to
/// 40 registers, recomputes addresses and reads one channel at a time.
constexpr int kResidentBlocks = 8;

/// A pixel coordinate along one axis of the image, as a linear function of an output row's position 2 row + 1 - height.
/// It differs from unnormalize only for a theta so large that sums overflow: if `step` overflows, the middle row
/// (position 0) is outside of the image; on an axis of size 1 (half = 0), a sum that would overflow gives pixel 0.
struct AlongColumn {
  float start;
  float step;
};

__device__ __forceinline__ AlongColumn along_column(const float* theta_row, float x_center, const Axis& axis,
                                                    float inverse_height) {
  const float start = vfma(__ldg(theta_row), x_center, __ldg(theta_row + 2));
  return {vfma(start, axis.half, axis.center), __ldg(theta_row + 1) * inverse_height * axis.half};
}

template <class Layout>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) affine_kernel(const Warp w, const Tiles tiles) {
  const Place<int32_t> place = place_of<int32_t, Layout::kPacked>(tiles);
  if (place.column >= w.out_size[0] || place.line >= place.after_lines) return;
  const float x_center = pixel_center<Scalar>(place.column, w.out_size[0], w.inverse_out_size[0]);
  // A row's position is 2 row + 1 - height: integers below 2^24, which are exact in fp32.
  const float first = vfloat(2 * place.line + 1 - w.out_size[1]),
              after = vfloat(2 * place.after_lines + 1 - w.out_size[1]);
  for (int32_t index = place.item; index < static_cast<int32_t>(tiles.items); index += place.item_step) {
    const Item item = item_at<int32_t, Layout::kChunked>(w, tiles, index);
    const Layout layout(w, tiles, item, place.pack);
    const float* theta = static_cast<const float*>(w.theta) + item.sample * w.theta_stride;
    const AlongColumn along_x = along_column(theta, x_center, w.axis[0], w.inverse_out_size[1]);
    const AlongColumn along_y = along_column(theta + 3, x_center, w.axis[1], w.inverse_out_size[1]);
    int32_t to = (place.line * w.out_size[0] + place.column) * static_cast<int32_t>(w.out_pixel_stride);
    for (float position = first; position < after; position += tiles.position_step, to += tiles.out_step) {
      const auto point = [&] {
        return affine_point<Scalar, 2>(theta, {{x_center, position * w.inverse_out_size[1], 0.0f}});
      };
      bilinear_pixel(w, tiles, layout, vfma(along_x.step, position, along_x.start),
                     vfma(along_y.step, position, along_y.start), point, to);
    }
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_AFFINE_HPP_
