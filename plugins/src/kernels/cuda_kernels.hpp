/// \file cuda_kernels.hpp
/// \brief The CUDA kernels for every kind, mode, padding and layout.
///
/// One thread computes an output pixel's taps once and applies them to a group of channels. Mode, padding and kind are
/// branches that are uniform in a launch; only values that determine the number of registers (taps, element type,
/// offset width) are template parameters.
#ifndef STN_KERNELS_CUDA_KERNELS_HPP_
#define STN_KERNELS_CUDA_KERNELS_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_taps.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {
namespace {

constexpr int kThreads = 256;

/// Elements that are read and written in one access.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T values[Width];
};

/// Planar images (and any other strides): neighboring threads have neighboring pixels.
template <class T, int Rank, int Count, class Offset>
__global__ void __launch_bounds__(kThreads) planar_kernel(const Warp w, int64_t total, int64_t channel_chunk) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first_channel = blockIdx.y * channel_chunk;
  const int64_t channels = min(channel_chunk, w.channels - first_channel);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const Parts parts = split(i, w.pixels, total);
    const Pixel pixel{parts.quotient, parts.remainder};
    Taps<Count, Offset> taps;
    find_taps<Rank, Offset>(w, point_of<Rank>(w, pixel), &taps);
    const T* input =
        static_cast<const T*>(w.input) + pixel.sample * w.in_batch_stride + first_channel * w.in_channel_stride;
    T* output = static_cast<T*>(w.output) + pixel.sample * w.out_batch_stride + pixel.index * w.out_pixel_stride +
                first_channel * w.out_channel_stride;
#pragma unroll 4
    for (int64_t c = 0; c < channels; ++c) {
      float sum = 0.0f;
#pragma unroll
      for (int t = 0; t < Count; ++t) {
        const float value = taps.valid[t] ? to_float(input[taps.at[t]]) : 0.0f;
        sum = vfma(value, taps.weight[t], sum);
      }
      from_float(sum, output);
      input += w.in_channel_stride;
      output += w.out_channel_stride;
    }
  }
}

/// Channels-last images: neighboring threads have neighboring groups of `Width` channels of one pixel.
template <class T, int Rank, int Count, int Width>
__global__ void __launch_bounds__(kThreads) channels_last_kernel(const Warp w, int64_t total, int64_t groups) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const Parts group = split(i, groups, total), at = split(group.quotient, w.pixels, total);
    const int64_t channel = group.remainder * Width;
    const Pixel pixel{at.quotient, at.remainder};
    Taps<Count, int64_t> taps;
    find_taps<Rank, int64_t>(w, point_of<Rank>(w, pixel), &taps);
    const T* input = static_cast<const T*>(w.input) + pixel.sample * w.in_batch_stride + channel;
    float sum[Width] = {};
#pragma unroll
    for (int t = 0; t < Count; ++t) {
      if (!taps.valid[t]) continue;
      const Pack<T, Width> pack = *reinterpret_cast<const Pack<T, Width>*>(input + taps.at[t]);
#pragma unroll
      for (int c = 0; c < Width; ++c) sum[c] = vfma(to_float(pack.values[c]), taps.weight[t], sum[c]);
    }
    Pack<T, Width> result;
#pragma unroll
    for (int c = 0; c < Width; ++c) from_float(sum[c], &result.values[c]);
    T* output =
        static_cast<T*>(w.output) + pixel.sample * w.out_batch_stride + pixel.index * w.out_pixel_stride + channel;
    *reinterpret_cast<Pack<T, Width>*>(output) = result;
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_KERNELS_HPP_
