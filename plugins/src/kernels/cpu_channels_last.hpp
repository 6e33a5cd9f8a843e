/// \file cpu_channels_last.hpp
/// \brief The CPU kernel for channels-last images: vectorized over channels, pixel by pixel.
#ifndef STN_KERNELS_CPU_CHANNELS_LAST_HPP_
#define STN_KERNELS_CPU_CHANNELS_LAST_HPP_

#include "kernels/cpu.hpp"
#include "kernels/cpu_grid.hpp"
#include "kernels/cpu_planar.hpp"
#include "kernels/cpu_taps.hpp"
#include "kernels/lanes_scalar.hpp"

namespace stn {
namespace {

/// The pixels that one output pixel reads and their weights; at most sixteen, for bicubic.
struct PixelList {
  int64_t at[16];
  float weight[16];
  int count = 0;

  STN_HD void add(bool valid, int64_t offset, float w) {
    at[count] = offset;
    weight[count] = w;
    count += valid ? 1 : 0;
  }
};

template <int Rank>
STN_HD void list_pixels(const Warp&, const Nearest<ScalarLanes, Rank>& taps, PixelList* list) {
  list->add(taps.valid, taps.at, 1.0f);
}

template <int Rank>
STN_HD void list_pixels(const Warp& w, const Linear<ScalarLanes, Rank>& taps, PixelList* list) {
  const bool inside = taps.coverage == Coverage::kInside;
  for (int r = 0; r < taps.kRows; ++r) {
    const int64_t row =
        inside ? taps.first[0] + (r % 2 * w.in_row + r / 2 * w.in_plane) * w.in_pixel_stride : taps.first[r];
    list->add(inside || (taps.left_valid && taps.row_valid[r]), row, taps.left * taps.row[r]);
    list->add(inside || (taps.right_valid && taps.row_valid[r]), row + w.in_pixel_stride, taps.right * taps.row[r]);
  }
}

STN_HD void list_pixels(const Warp& w, const Cubic<ScalarLanes>& taps, PixelList* list) {
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 4; ++c) {
      if (!(taps.x.valid[c] && taps.y.valid[r])) continue;
      list->add(true, ScalarLanes::offset<2>(taps.x.index[c], taps.y.index[r], 0, w),
                taps.x.weight[c] * taps.y.weight[r]);
    }
  }
}

template <class L, class T>
STN_HD void blend(const T* input, T* output, int64_t channels, const PixelList& list) {
  using F = typename L::F;
  for (int64_t c = 0; c < channels; c += L::width) {
    const int count = channels - c < L::width ? static_cast<int>(channels - c) : L::width;
    F sum(0.0f);
    for (int i = 0; i < list.count; ++i) {
      sum = vfma(L::load_values(input + list.at[i] + c, count), F(list.weight[i]), sum);
    }
    L::store(output + c, sum, count);
  }
}

template <class L, class Taps, class T>
STN_HD void channels_last_unit(const Warp& w, const CpuUnit& unit, const Points* points) {
  const T* input = static_cast<const T*>(w.input) + unit.sample * w.in_batch_stride + unit.first_channel;
  T* output = static_cast<T*>(w.output) + unit.sample * w.out_batch_stride + unit.first_channel +
              unit.first_pixel * w.out_pixel_stride;
  GridWalk<ScalarLanes, Taps::kRank> walk(w, unit.sample, unit.first_pixel, points);
  for (int64_t i = 0; i < unit.pixels; ++i, output += w.out_pixel_stride) {
    Taps taps;
    taps.find(w, walk.next(1));
    PixelList list;
    list_pixels(w, taps, &list);
    blend<L>(input, output, unit.channels, list);
  }
}

template <class L, class Taps, class T>
void channels_last_run(const CpuPlan& plan, int64_t begin, int64_t end) {
  const Warp warp = plan.warp;
  Points points;
  for (int64_t index = begin; index < end; ++index) {
    const CpuUnit unit = unit_of(plan, index);
    if (from_lattice(warp.kind)) find_points<L, Taps::kRank>(warp, unit, &points);
    channels_last_unit<L, Taps, T>(warp, unit, &points);
  }
}

template <class L, class T>
CpuRun channels_last_kernel_of(const Warp& w) {
  switch (w.mode) {
    case STN_NEAREST:
      return w.rank == 2 ? channels_last_run<L, Nearest<ScalarLanes, 2>, T>
                         : channels_last_run<L, Nearest<ScalarLanes, 3>, T>;
    case STN_BICUBIC:
      return channels_last_run<L, Cubic<ScalarLanes>, T>;
    default:
      return w.rank == 2 ? channels_last_run<L, Linear<ScalarLanes, 2>, T>
                         : channels_last_run<L, Linear<ScalarLanes, 3>, T>;
  }
}

/// The channels-last kernel of lane type L for a warp.
template <class L>
CpuRun channels_last_kernel(const Warp& w) {
  switch (w.dtype) {
    case STN_FP32:
      return channels_last_kernel_of<L, float>(w);
    case STN_FP16:
      return channels_last_kernel_of<L, Half>(w);
    default:
      return channels_last_kernel_of<L, BFloat>(w);
  }
}

/// The SIMD kernel of lane type L for a warp, or NULL if only the plain kernel supports the warp.
template <class L>
CpuRun simd_kernel(const Warp& w) {
  if (w.mixed_layouts) return nullptr;
  if (w.channels_last) return channels_last_kernel<L>(w);
  // Offsets are 32-bit, and pairs of neighbors need two columns.
  const bool narrow = w.axis[0].size < 2;
  const bool wide = w.in_pixels >= (int64_t{1} << 31) || w.pixels >= (int64_t{1} << 31);
  return narrow || wide ? nullptr : planar_kernel<L>(w);
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_CHANNELS_LAST_HPP_
