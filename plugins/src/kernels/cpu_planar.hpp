/// \file cpu_planar.hpp
/// \brief The CPU kernel for planar images: vectors over pixels, taps once a tile, then channel after channel.
#ifndef STN_KERNELS_CPU_PLANAR_HPP_
#define STN_KERNELS_CPU_PLANAR_HPP_

#include "kernels/cpu.hpp"
#include "kernels/cpu_grid.hpp"
#include "kernels/cpu_taps.hpp"

namespace stn {
namespace {

template <class L, class Taps, class T>
void planar_unit(const Warp& w, const CpuUnit& unit) {
  constexpr int kVectors = kTilePixels / L::width;
  Taps taps[kVectors];
  const int pixels = static_cast<int>(unit.pixels), vectors = (pixels + L::width - 1) / L::width;
  GridWalk<L> walk(w, unit.sample, unit.first_pixel);
  for (int v = 0; v < vectors; ++v) {
    const int rest = pixels - v * L::width;
    taps[v].find(w, walk.next(rest < L::width ? rest : L::width));
  }
  const T* input =
      static_cast<const T*>(w.input) + unit.sample * w.in_batch_stride + unit.first_channel * w.in_channel_stride;
  T* output = static_cast<T*>(w.output) + unit.sample * w.out_batch_stride + unit.first_channel * w.out_channel_stride +
              unit.first_pixel * w.out_pixel_stride;
  const int64_t step = L::width * w.out_pixel_stride;
  for (int64_t c = 0; c < unit.channels; ++c, input += w.in_channel_stride, output += w.out_channel_stride) {
    T* to = output;
    for (int v = 0; v < vectors; ++v, to += step) {
      const int rest = pixels - v * L::width;
      L::store(to, taps[v].apply(w, input), rest < L::width ? rest : L::width);
    }
  }
}

template <class L, class Taps, class T>
void planar_run(const CpuPlan& plan, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) planar_unit<L, Taps, T>(plan.warp, unit_of(plan, index));
}

template <class L, class T>
CpuRun planar_kernel_of(const Warp& w) {
  switch (w.mode) {
    case STN_NEAREST:
      return planar_run<L, Nearest<L>, T>;
    case STN_BICUBIC:
      return planar_run<L, Cubic<L>, T>;
    default:
      return w.rank == 2 ? planar_run<L, Linear<L, 2>, T> : planar_run<L, Linear<L, 3>, T>;
  }
}

/// The planar kernel of lane type L for a warp.
template <class L>
CpuRun planar_kernel(const Warp& w) {
  switch (w.dtype) {
    case STN_FP32:
      return planar_kernel_of<L, float>(w);
    case STN_FP16:
      return planar_kernel_of<L, Half>(w);
    default:
      return planar_kernel_of<L, BFloat>(w);
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_PLANAR_HPP_
