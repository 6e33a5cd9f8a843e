/// \file cuda_pixels.hpp
/// \brief On the device: one output pixel at its sampling point. Pixels whose neighbors are all in the image need no
/// padding, clamps or masks.
#ifndef STN_KERNELS_CUDA_PIXELS_HPP_
#define STN_KERNELS_CUDA_PIXELS_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_layouts.hpp"
#include "kernels/cuda_taps.hpp"
#include "kernels/cuda_tiles.hpp"

namespace stn {
namespace {

/// Adding 1.5 * 2^23 leaves a coordinate's integer in the last bits: additions are faster than conversions. A
/// coordinate beyond 2^22, an infinite one or NaN gives an index far outside of any image of sides below 2^22.
constexpr float kShift = 12582912.0f;
__device__ __forceinline__ int32_t shifted_index(float shifted) {
  return static_cast<int32_t>(bits_of(shifted) - 0x4b400000u);
}

/// A coordinate's integer and fractional part. The weight of a coordinate far outside is undefined.
struct FloorParts {
  int32_t index;
  float weight;  ///< of the pixel after `index`
};

__device__ __forceinline__ FloorParts floor_parts(float x) {
  const float shifted = __fadd_rd(x, kShift);
  return {shifted_index(shifted), x - (shifted - kShift)};
}

/// A bilinear pixel at a coordinate in pixels. `point` computes the normalized one, for padding with the image.
template <class Layout, class PointOf>
__device__ __forceinline__ void bilinear_pixel(const Warp& w, const Tiles& tiles, const Layout& layout, float at_x,
                                               float at_y, PointOf point, typename Layout::Offset to) {
  using Offset = typename Layout::Offset;
  static_assert(sizeof(Offset) == 4, "indices of an image of fewer than 2^28 elements");
  const FloorParts x = floor_parts(at_x), y = floor_parts(at_y);
  const float right = x.weight, left = 1.0f - right, bottom = y.weight, top = 1.0f - bottom;
  // Unsigned, because it overflows, and is not used, where the index is far outside.
  const uint32_t at = static_cast<uint32_t>(y.index) * static_cast<uint32_t>(layout.in_row()) +
                      static_cast<uint32_t>(x.index) * static_cast<uint32_t>(layout.in_pixel());
  Square<Offset> square{static_cast<Offset>(at), {left * top, right * top, left * bottom, right * bottom}, {}};
  if (static_cast<uint32_t>(x.index) < tiles.inner_width && static_cast<uint32_t>(y.index) < tiles.inner_height) {
    layout.template weigh<false>(square, to);
  } else if (w.padding != STN_ZEROS) {
    Taps<4, Offset> taps;
    find_taps<2, Offset>(w, point(), &taps);
    layout.weigh(taps, to);
  } else {
    const bool x0 = vinside(x.index, w.axis[0].size), x1 = vinside(x.index + 1, w.axis[0].size);
    const bool y0 = vinside(y.index, w.axis[1].size), y1 = vinside(y.index + 1, w.axis[1].size);
    square.valid[0] = x0 && y0;
    square.valid[1] = x1 && y0;
    square.valid[2] = x0 && y1;
    square.valid[3] = x1 && y1;
    if ((x0 || x1) && (y0 || y1)) {
      layout.template weigh<true>(square, to);
    } else {
      layout.zeros(to);
    }
  }
}

/// A nearest pixel at a normalized point.
template <class Layout>
__device__ __forceinline__ void nearest_pixel(const Warp& w, const Layout& layout, const Point<Scalar>& point,
                                              typename Layout::Offset to) {
  const int32_t x = shifted_index(vfma(point.at[0], w.axis[0].half, w.axis[0].center) + kShift);
  const int32_t y = shifted_index(vfma(point.at[1], w.axis[1].half, w.axis[1].center) + kShift);
  Taps<1, typename Layout::Offset> taps{{0}, {1.0f}, {true}};
  if (vinside(x, w.axis[0].size) && vinside(y, w.axis[1].size)) {
    taps.at[0] = y * layout.in_row() + x * layout.in_pixel();
  } else if (w.padding == STN_ZEROS) {
    layout.zeros(to);
    return;
  } else {
    find_taps<2, typename Layout::Offset>(w, point, &taps);
  }
  layout.weigh(taps, to);
}

/// A pixel at a normalized point, with `Count` taps.
template <int Rank, int Count, class Layout>
__device__ __forceinline__ void pixel_at(const Warp& w, const Tiles& tiles, const Layout& layout,
                                         const Point<Scalar>& point, typename Layout::Offset to) {
  using Offset = typename Layout::Offset;
  constexpr bool kSmall = sizeof(Offset) == 4;
  if constexpr (kSmall && Rank == 2 && Count == 4) {
    const float x = vfma(point.at[0], w.axis[0].half, w.axis[0].center);
    const float y = vfma(point.at[1], w.axis[1].half, w.axis[1].center);
    bilinear_pixel(w, tiles, layout, x, y, [&] { return point; }, to);
  } else if constexpr (kSmall && Rank == 2 && Count == 1) {
    nearest_pixel(w, layout, point, to);
  } else {
    Taps<Count, Offset> taps;
    find_taps<Rank, Offset>(w, point, &taps);
    layout.weigh(taps, to);
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_PIXELS_HPP_
