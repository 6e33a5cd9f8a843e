/// \file cpu_planar.hpp
/// \brief The CPU kernel for planar images: vectorized over pixels, with taps computed once per block.
#ifndef STN_KERNELS_CPU_PLANAR_HPP_
#define STN_KERNELS_CPU_PLANAR_HPP_

#include "kernels/cpu.hpp"
#include "kernels/cpu_grid.hpp"
#include "kernels/cpu_points.hpp"
#include "kernels/cpu_taps.hpp"
#ifdef __AVX2__
#include "kernels/cpu_quads.hpp"
#endif

namespace stn {
namespace {

/// The number of lanes of vector `v` that are pixels, for a block of `pixels`.
template <class L>
STN_HD int lanes_used(int pixels, int v) {
  const int rest = pixels - v * L::width;
  return rest < L::width ? rest : L::width;
}

/// Samples one vector of `count` pixels in `channels` channels.
template <class L, class Taps, class T>
STN_HD void sample_vector(const Warp& w, const Taps& taps, const T* image, int channels, T* to, int count) {
#ifdef __AVX2__
  if constexpr (Taps::kQuads) {
    if (taps.coverage == Coverage::kInside && count == L::width) {
      apply_quads<L>(w, taps, image, channels, to);
      return;
    }
  }
#endif
  for (int c = 0; c < channels; ++c, image += w.in_channel_stride, to += w.out_channel_stride) {
    L::store(to, taps.apply(w, image), count);
  }
}

template <class L, class Taps, class T>
STN_HD void planar_unit(const Warp& w, const CpuUnit& unit, const Points* points) {
  const T* input =
      static_cast<const T*>(w.input) + unit.sample * w.in_batch_stride + unit.first_channel * w.in_channel_stride;
  T* output = static_cast<T*>(w.output) + unit.sample * w.out_batch_stride + unit.first_channel * w.out_channel_stride +
              unit.first_pixel * w.out_pixel_stride;
  const int64_t step = L::width * w.out_pixel_stride;
  GridWalk<L, Taps::kRank> walk(w, unit.sample, unit.first_pixel, points);
  if (unit.channels == 1) {  // taps are used only once
    const int pixels = static_cast<int>(unit.pixels);
    for (int v = 0; v * L::width < pixels; ++v, output += step) {
      Taps taps;
      taps.find(w, walk.next(lanes_used<L>(pixels, v)));
      L::store(output, taps.apply(w, input), lanes_used<L>(pixels, v));
    }
    return;
  }
  Taps taps[kBlockPixels / L::width];
  for (int64_t first = 0; first < unit.pixels; first += kBlockPixels) {
    const int pixels = static_cast<int>(unit.pixels - first < kBlockPixels ? unit.pixels - first : kBlockPixels);
    const int vectors = (pixels + L::width - 1) / L::width;
    for (int v = 0; v < vectors; ++v) taps[v].find(w, walk.next(lanes_used<L>(pixels, v)));
    // More channels would evict each other from the L1 cache if the size of a channel is a multiple of 4096 bytes.
    constexpr int64_t kTogether = Taps::kQuads ? 4 : 1;
    for (int64_t c = 0; c < unit.channels; c += kTogether) {
      const int channels = static_cast<int>(unit.channels - c < kTogether ? unit.channels - c : kTogether);
      T* to = output + first * w.out_pixel_stride + c * w.out_channel_stride;
      const T* from = input + c * w.in_channel_stride;
      for (int v = 0; v < vectors; ++v, to += step) {
        sample_vector<L>(w, taps[v], from, channels, to, lanes_used<L>(pixels, v));
      }
    }
  }
}

template <class L, class Taps, class T>
void planar_run(const CpuPlan& plan, int64_t begin, int64_t end) {
  // A local copy: stores cannot alias it, so the compiler can keep its members in registers.
  const Warp warp = plan.warp;
  if (from_lattice(warp.kind)) {
    Points points;
    for (int64_t index = begin; index < end; ++index) {
      const CpuUnit unit = unit_of(plan, index);
      find_points<L, Taps::kRank>(warp, unit, &points);
      planar_unit<L, Taps, T>(warp, unit, &points);
    }
    return;
  }
  for (int64_t index = begin; index < end; ++index) planar_unit<L, Taps, T>(warp, unit_of(plan, index), nullptr);
}

template <class L, class T>
CpuRun planar_kernel_of(const Warp& w) {
  switch (w.mode) {
    case STN_NEAREST:
      return w.rank == 2 ? planar_run<L, Nearest<L, 2>, T> : planar_run<L, Nearest<L, 3>, T>;
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
