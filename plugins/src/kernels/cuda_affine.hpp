/// \file cuda_affine.hpp
/// \brief The CUDA kernel for the common case: affine, bilinear, planar images of fewer than 2^28 pixels.
///
/// It computes the same as planar_kernel with a quarter of the instructions (benchmarks/NOTES.md): a block stays within
/// one sample, so theta and pointers are constant in a block; a thread walks down a column, which needs one
/// multiplication per coordinate; and pixels whose four neighbors are in the image need no padding, clamps or masks.
#ifndef STN_KERNELS_CUDA_AFFINE_HPP_
#define STN_KERNELS_CUDA_AFFINE_HPP_

#include <cuda_runtime.h>

#include "kernels/cuda_kernels.hpp"
#include "kernels/cuda_taps.hpp"

namespace stn {
namespace {

/// Threads per block: few, so that each thread has several rows even for small images.
constexpr int kAffineThreads = 128;
/// Resident blocks per multiprocessor, which allows 64 registers per thread. Without this bound the compiler uses 32 to
/// 40 registers, recomputes addresses and reads one channel at a time.
constexpr int kAffineBlocks = 8;

/// The partition of the work, and other values that are equal for all threads. A block has a tile of columns and rows
/// (blockIdx.x and y) and every gridDim.z-th item; an item is a chunk of channels of one sample.
struct AffineTiles {
  int32_t log_width;      ///< a tile has 2^log_width columns
  int32_t rows;           ///< rows of a tile that threads start in: kAffineThreads / 2^log_width
  int32_t height;         ///< rows of a tile, a multiple of `rows`
  int32_t chunks;         ///< chunks of channels
  int32_t chunk;          ///< channels in a chunk
  int32_t items;          ///< batch * chunks
  int32_t in_channel;     ///< elements from one channel to the next
  int32_t out_channel;    ///< likewise
  int32_t out_step;       ///< elements from one of a thread's rows to its next
  float position_step;    ///< 2 * rows
  uint32_t inner_width;   ///< the input's width - 1: the columns that have a right neighbor
  uint32_t inner_height;  ///< likewise
};

/// The same pointer, opaque to the compiler, which then keeps it in a register instead of recomputing it at each use.
template <class T>
__device__ __forceinline__ T* kept(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Reads global memory through the read-only path, so that all reads of a pixel can precede its first write.
__device__ __forceinline__ float load(const float* from) { return __ldg(from); }
template <class T>
__device__ __forceinline__ float load(const T* from) {
  return to_float(T{__ldg(&from->bits)});
}

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

/// A coordinate's integer and fractional part. Adding 1.5 * 2^23, rounded down, leaves the integer in the last bits:
/// two additions, which are faster than two conversions. A coordinate beyond 2^22 or NaN gives an index far outside of
/// any image that this kernel supports, and an undefined weight.
struct FloorParts {
  int32_t index;
  float weight;  ///< of the pixel after `index`
};

__device__ __forceinline__ FloorParts floor_parts(float x) {
  constexpr float kShift = 12582912.0f;
  const float shifted = __fadd_rd(x, kShift);
  return {static_cast<int32_t>(bits_of(shifted) - 0x4b400000u), x - (shifted - kShift)};
}

/// The channels of one sample that a thread computes: `Channels` of them, or `count` if `Channels` is 0.
template <class T, int Channels>
struct Planes {
  static_assert(Channels <= 7, "offsets into channels of fewer than 2^28 pixels fit in 32 bits");

  const T* in;
  T* out;
  int32_t count;

  /// Calls `apply` for each channel with its pointers: `first` and `second` to the input, `to` to the output.
  template <class Apply>
  __device__ __forceinline__ void each(const AffineTiles& tiles, int32_t first, int32_t second, int32_t to,
                                       Apply apply) const {
    if constexpr (Channels != 0) {
#pragma unroll
      for (int32_t c = 0; c < Channels; ++c) {
        // 32-bit offsets suffice for so few channels. (`from` may be before the image, if masked.)
        const T* from = in + (first + c * tiles.in_channel);
        apply(from, from + (second - first), out + (to + c * tiles.out_channel));
      }
    } else {
      const T *from = kept(in + first), *also = kept(in + second);
      T* target = kept(out + to);
#pragma unroll 4
      for (int32_t c = 0; c < count; ++c) {
        apply(from, also, target);
        from += tiles.in_channel;
        also += tiles.in_channel;
        target += tiles.out_channel;
      }
    }
  }
};

/// The weighted sum of a pixel's four neighbors; if `Masked`, neighbors that are not `valid` count as zeros.
template <bool Masked, class T, int Channels>
__device__ __forceinline__ void weigh(const Warp& w, const AffineTiles& tiles, const Planes<T, Channels>& planes,
                                      FloorParts x, FloorParts y, const bool* valid, int32_t to) {
  const float right = x.weight, left = 1.0f - right, bottom = y.weight, top = 1.0f - bottom;
  const float weight[4] = {left * top, right * top, left * bottom, right * bottom};
  const int32_t above = y.index * w.axis[0].size + x.index, below = above + w.axis[0].size;
  planes.each(tiles, above, below, to, [&](const T* upper, const T* lower, T* target) {
    const float a = !Masked || valid[0] ? load(upper) : 0.0f, b = !Masked || valid[1] ? load(upper + 1) : 0.0f;
    const float c = !Masked || valid[2] ? load(lower) : 0.0f, d = !Masked || valid[3] ? load(lower + 1) : 0.0f;
    from_float(vfma(d, weight[3], vfma(c, weight[2], vfma(b, weight[1], a * weight[0]))), target);
  });
}

/// A pixel with neighbors outside of the image, for zeros padding.
template <class T, int Channels>
__device__ __forceinline__ void zeros_pixel(const Warp& w, const AffineTiles& tiles, const Planes<T, Channels>& planes,
                                            FloorParts x, FloorParts y, int32_t to) {
  const bool left = vinside(x.index, w.axis[0].size), right = vinside(x.index + 1, w.axis[0].size);
  const bool top = vinside(y.index, w.axis[1].size), bottom = vinside(y.index + 1, w.axis[1].size);
  if ((left || right) && (top || bottom)) {
    const bool valid[4] = {left && top, right && top, left && bottom, right && bottom};
    weigh<true>(w, tiles, planes, x, y, valid, to);
  } else {
    planes.each(tiles, 0, 0, to, [&](const T*, const T*, T* target) { from_float(0.0f, target); });
  }
}

/// A pixel at normalized coordinates, for any padding.
template <class T, int Channels>
__device__ __forceinline__ void padded_pixel(const Warp& w, const AffineTiles& tiles, const Planes<T, Channels>& planes,
                                             const Point<Scalar>& point, int32_t to) {
  Taps<4, int32_t> taps;
  find_taps<2, int32_t>(w, point, &taps);
  planes.each(tiles, 0, 0, to, [&](const T* in, const T*, T* target) {
    float sum = 0.0f;
#pragma unroll
    for (int t = 0; t < 4; ++t) sum = vfma(taps.valid[t] ? load(in + taps.at[t]) : 0.0f, taps.weight[t], sum);
    from_float(sum, target);
  });
}

template <class T, int Channels>
__global__ void __launch_bounds__(kAffineThreads, kAffineBlocks) affine_kernel(const Warp w, const AffineTiles tiles) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t column = static_cast<int32_t>(blockIdx.x << tiles.log_width) + (thread & ((1 << tiles.log_width) - 1));
  const int32_t tile_row = static_cast<int32_t>(blockIdx.y) * tiles.height;
  const int32_t row = tile_row + (thread >> tiles.log_width), after_rows = min(w.out_size[1], tile_row + tiles.height);
  if (column >= w.out_size[0] || row >= after_rows) return;
  const float x_center = pixel_center<Scalar>(column, w.out_size[0], w.inverse_out_size[0]);
  // A row's position is 2 row + 1 - height: integers below 2^24, which are exact in fp32.
  const float first = vfloat(2 * row + 1 - w.out_size[1]), after = vfloat(2 * after_rows + 1 - w.out_size[1]);
  for (int32_t item = static_cast<int32_t>(blockIdx.z); item < tiles.items; item += static_cast<int32_t>(gridDim.z)) {
    int32_t sample = item;
    const T* input = static_cast<const T*>(w.input);
    T* output = static_cast<T*>(w.output);
    Planes<T, Channels> planes;
    planes.count = tiles.chunk;
    if (Channels == 0 && tiles.chunks != 1) {
      sample = item / tiles.chunks;
      const int32_t first_channel = (item - sample * tiles.chunks) * tiles.chunk;
      planes.count = min(tiles.chunk, static_cast<int32_t>(w.channels) - first_channel);
      input += static_cast<int64_t>(first_channel) * tiles.in_channel;
      output += static_cast<int64_t>(first_channel) * tiles.out_channel;
    }
    planes.in = kept(input + sample * w.in_batch_stride);
    planes.out = kept(output + sample * w.out_batch_stride);
    const float* theta = static_cast<const float*>(w.theta) + sample * w.theta_stride;
    const AlongColumn along_x = along_column(theta, x_center, w.axis[0], w.inverse_out_size[1]);
    const AlongColumn along_y = along_column(theta + 3, x_center, w.axis[1], w.inverse_out_size[1]);
    int32_t to = row * w.out_size[0] + column;
    for (float position = first; position < after; position += tiles.position_step, to += tiles.out_step) {
      const FloorParts x = floor_parts(vfma(along_x.step, position, along_x.start));
      const FloorParts y = floor_parts(vfma(along_y.step, position, along_y.start));
      if (static_cast<uint32_t>(x.index) < tiles.inner_width && static_cast<uint32_t>(y.index) < tiles.inner_height) {
        weigh<false>(w, tiles, planes, x, y, nullptr, to);
      } else if (w.padding == STN_ZEROS) {
        zeros_pixel(w, tiles, planes, x, y, to);
      } else {
        const Point<Scalar> center{{x_center, position * w.inverse_out_size[1], 0.0f}};
        padded_pixel(w, tiles, planes, affine_point<Scalar, 2>(theta, center), to);
      }
    }
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_AFFINE_HPP_
