/// \file cuda_columns.hpp
/// \brief The CUDA kernel for every kind, mode, padding and layout.
///
/// Mode, padding and kind are branches that are uniform in a launch; only what determines the number of registers
/// (taps, the layout with its element type and offset width) is a template parameter.
#ifndef STN_KERNELS_CUDA_COLUMNS_HPP_
#define STN_KERNELS_CUDA_COLUMNS_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_affine.hpp"
#include "kernels/cuda_layouts.hpp"
#include "kernels/cuda_pixels.hpp"
#include "kernels/cuda_points.hpp"
#include "kernels/cuda_tiles.hpp"

namespace stn {
namespace {

/// Resident blocks per multiprocessor: fewer, and so more registers per thread, where there are more values to keep.
template <class Layout, int Rank, int Count>
constexpr int blocks_of() {
  if (Rank == 2 && Count <= 4 && sizeof(typename Layout::Offset) == 4) return kResidentBlocks - Layout::kChunked;
  return Count == 1 ? 5 : 3;
}

template <class Layout, int Rank, int Count>
__global__ void __launch_bounds__(kThreads, (blocks_of<Layout, Rank, Count>()))
    column_kernel(const Warp w, const Tiles tiles) {
  using Offset = typename Layout::Offset;
  const Place<Offset> place = place_of<Offset, Layout::kPacked>(tiles);
  if (place.column >= w.out_size[0] || place.line >= place.after_lines) return;
  const float x_center = pixel_center<Scalar>(place.column, w.out_size[0], w.inverse_out_size[0]);
  const int32_t z = Rank == 3 ? static_cast<int32_t>(place.line / w.out_size[1]) : 0;
  const int32_t y = static_cast<int32_t>(place.line - static_cast<Offset>(z) * w.out_size[1]);
  const Offset lines = 1 << tiles.log_lines;
  for (Offset index = place.item; index < static_cast<Offset>(tiles.items); index += place.item_step) {
    const Item item = item_at<Offset, Layout::kChunked>(w, tiles, index);
    const Layout layout(w, tiles, item, place.pack);
    const Points<Rank, Offset> points(w, tiles, item.sample);
    Pixel<Offset> pixel{place.column, y, z, place.line * w.out_size[0] + place.column};
    Offset to = pixel.index * static_cast<Offset>(w.out_pixel_stride);
    for (Offset line = place.line; line < place.after_lines; line += lines) {
      pixel_at<Rank, Count>(w, tiles, layout, points.at(w, tiles, pixel, x_center), to);
      to += sizeof(Offset) == 4 ? tiles.out_step : static_cast<Offset>(lines * w.out_size[0] * w.out_pixel_stride);
      pixel.index += lines * w.out_size[0];
      pixel.y += tiles.y_step;
      if constexpr (Rank == 3) {
        pixel.z += tiles.z_step;
        if (pixel.y >= w.out_size[1]) {
          pixel.y -= w.out_size[1];
          ++pixel.z;
        }
      }
    }
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_COLUMNS_HPP_
