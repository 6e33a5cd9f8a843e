/// \file cuda_warp.cu
/// \brief The CUDA kernels and their launcher: one pass from theta to the warped image, no grid in memory.
///
/// The sampling math is stn/sampling.hpp's, as on the CPU. One thread computes an output pixel's taps once and applies
/// them to a group of channels. Mode, padding and kind are branches that a whole launch takes alike; only what decides
/// how many registers a thread needs (taps, type of element, width of an offset) is a template parameter.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/cuda.hpp"
#include "kernels/numbers.hpp"

namespace stn {
namespace {

constexpr int kThreads = 256;

/// What can be read and written at once.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T values[Width];
};

/// The pixel that a thread works on.
struct Pixel {
  int64_t sample;
  int64_t index;
};

struct Parts {
  int64_t quotient;
  int64_t remainder;
};

/// Quotient and remainder of what is less than `limit`: 32-bit division is several times faster, and mostly enough.
__device__ __forceinline__ Parts split(int64_t dividend, int64_t divisor, int64_t limit) {
  if (limit < (int64_t{1} << 31)) {
    // Divisors here are factors of the limit, so they fit as well.
    const uint32_t quotient = static_cast<uint32_t>(dividend) / static_cast<uint32_t>(divisor);
    return {quotient, dividend - static_cast<int64_t>(quotient) * divisor};
  }
  return {dividend / divisor, dividend % divisor};
}

template <int Rank>
__device__ __forceinline__ Point<Scalar> pixel_centre_of(const Warp& w, int64_t pixel) {
  Point<Scalar> at;
  // 32-bit division is several times faster, and nearly every image is small enough.
  if (w.pixels < (int64_t{1} << 31)) {
    const uint32_t p = static_cast<uint32_t>(pixel), columns = static_cast<uint32_t>(w.out_size[0]);
    const uint32_t line = p / columns;
    const uint32_t slice = Rank == 3 ? line / static_cast<uint32_t>(w.out_size[1]) : 0;
    at.at[0] = pixel_centre<Scalar>(static_cast<int32_t>(p - line * columns), w.out_size[0], w.inverse_out_size[0]);
    const int32_t y = static_cast<int32_t>(line - slice * static_cast<uint32_t>(w.out_size[1]));
    at.at[1] = pixel_centre<Scalar>(y, w.out_size[1], w.inverse_out_size[1]);
    at.at[2] = Rank == 3 ? pixel_centre<Scalar>(static_cast<int32_t>(slice), w.out_size[2], w.inverse_out_size[2]) : 0;
    return at;
  }
  const int64_t line = pixel / w.out_size[0], slice = Rank == 3 ? line / w.out_size[1] : 0;
  at.at[0] =
      pixel_centre<Scalar>(static_cast<int32_t>(pixel - line * w.out_size[0]), w.out_size[0], w.inverse_out_size[0]);
  at.at[1] =
      pixel_centre<Scalar>(static_cast<int32_t>(line - slice * w.out_size[1]), w.out_size[1], w.inverse_out_size[1]);
  at.at[2] = Rank == 3 ? pixel_centre<Scalar>(static_cast<int32_t>(slice), w.out_size[2], w.inverse_out_size[2]) : 0;
  return at;
}

template <int Rank, class T>
__device__ __forceinline__ Point<Scalar> grid_point(const Warp& w, Pixel pixel) {
  const T* from = static_cast<const T*>(w.theta) + pixel.sample * w.theta_stride + pixel.index * Rank;
  Point<Scalar> point;
  for (int d = 0; d < 3; ++d) point.at[d] = d < Rank ? to_float(from[d]) : 0.0f;
  return point;
}

/// Rows of theta times a column of the basis.
template <int Rows>
__device__ __forceinline__ Point<Scalar> basis_point(const Warp& w, Pixel pixel) {
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  Point<Scalar> sum{{0.0f, 0.0f, 0.0f}};
  for (int32_t k = 0; k < w.rows; ++k) {
    const float b = __ldg(w.basis + k * w.pixels + pixel.index);
    for (int d = 0; d < Rows; ++d) sum.at[d] = vfma(__ldg(theta + d * w.rows + k), b, sum.at[d]);
  }
  return sum;
}

/// Where an output pixel samples, in normalised coordinates.
template <int Rank>
__device__ __forceinline__ Point<Scalar> point_of(const Warp& w, Pixel pixel) {
  const float* theta = static_cast<const float*>(w.theta) + pixel.sample * w.theta_stride;
  switch (w.kind) {
    case STN_AFFINE:
      return affine_point<Scalar, Rank>(theta, pixel_centre_of<Rank>(w, pixel.index));
    case STN_BASIS:
      return basis_point<Rank>(w, pixel);
    case STN_PROJECTIVE: {
      if (w.basis != nullptr) {
        const Point<Scalar> sums = basis_point<3>(w, pixel);
        return divide<Scalar>(sums, sums.at[2]);
      }
      const Point<Scalar> at = pixel_centre_of<2>(w, pixel.index);
      Point<Scalar> numerator = at;
      for (int d = 0; d < 2; ++d) numerator.at[d] = affine_row<Scalar, 2>(theta + 3 * d, at);
      return divide<Scalar>(numerator, affine_row<Scalar, 2>(theta + 6, at));
    }
    default:
      switch (w.grid_dtype) {
        case STN_FP32:
          return grid_point<Rank, float>(w, pixel);
        case STN_FP16:
          return grid_point<Rank, Half>(w, pixel);
        default:
          return grid_point<Rank, BFloat>(w, pixel);
      }
  }
}

/// The pixels that one output pixel reads, as offsets into a channel and weights; a weight counts only where `valid`.
template <int Count, class Offset>
struct Taps {
  Offset at[Count];
  float weight[Count];
  bool valid[Count];
};

template <class Offset>
__device__ __forceinline__ Offset offset_of(const Warp& w, int32_t x, int32_t y, int32_t z) {
  return (static_cast<Offset>(x) + static_cast<Offset>(y) * static_cast<Offset>(w.in_row) +
          static_cast<Offset>(z) * static_cast<Offset>(w.in_plane)) *
         static_cast<Offset>(w.in_pixel_stride);
}

/// Nearest: one tap.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<1, Offset>* taps) {
  int32_t index[3] = {0, 0, 0};
  bool valid = true;
  for (int d = 0; d < Rank; ++d) {
    const NearestTap<Scalar> tap = nearest_tap<Scalar>(unnormalise(point.at[d], w.axis[d]), w.axis[d], w.padding);
    index[d] = tap.index;
    valid = valid && tap.valid;
  }
  taps->at[0] = offset_of<Offset>(w, index[0], index[1], index[2]);
  taps->weight[0] = 1.0f;
  taps->valid[0] = valid;
}

/// Linear: 2^Rank taps.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<(1 << Rank), Offset>* taps) {
  LinearTap<Scalar> tap[3];
  for (int d = 0; d < Rank; ++d) {
    tap[d] = linear_tap<Scalar>(unnormalise(point.at[d], w.axis[d]), w.axis[d], w.padding);
  }
#pragma unroll
  for (int i = 0; i < (1 << Rank); ++i) {
    int32_t index[3] = {0, 0, 0};
    float weight = 1.0f;
    bool valid = true;
#pragma unroll
    for (int d = 0; d < Rank; ++d) {
      const bool high = (i >> d & 1) != 0;
      index[d] = tap[d].low + (high ? 1 : 0);
      weight *= high ? tap[d].weight_high : tap[d].weight_low;
      valid = valid && (high ? tap[d].valid_high : tap[d].valid_low);
    }
    taps->at[i] = offset_of<Offset>(w, index[0], index[1], index[2]);
    taps->weight[i] = weight;
    taps->valid[i] = valid;
  }
}

/// Bicubic: sixteen taps.
template <int Rank, class Offset>
__device__ __forceinline__ void find_taps(const Warp& w, const Point<Scalar>& point, Taps<16, Offset>* taps) {
  const CubicTap<Scalar> x = cubic_tap<Scalar>(unnormalise(point.at[0], w.axis[0]), w.axis[0], w.padding);
  const CubicTap<Scalar> y = cubic_tap<Scalar>(unnormalise(point.at[1], w.axis[1]), w.axis[1], w.padding);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    taps->at[i] = offset_of<Offset>(w, x.index[i % 4], y.index[i / 4], 0);
    taps->weight[i] = x.weight[i % 4] * y.weight[i / 4];
    taps->valid[i] = x.valid[i % 4] && y.valid[i / 4];
  }
}

/// Planar images (and any other mixture of strides): neighbouring threads have neighbouring pixels.
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

/// Channels-last images: neighbouring threads have neighbouring groups of `Width` channels of one pixel.
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

/// Says on stderr, where STN_LOG is set, what CUDA said, and gives the status for it.
int check(cudaError_t error, const char* file, int line) {
  if (error == cudaSuccess) return STN_OK;
  if (std::getenv("STN_LOG") != nullptr) {
    std::fprintf(stderr, "stn: %s:%d: %s: %s\n", file, line, cudaGetErrorName(error), cudaGetErrorString(error));
  }
  return STN_ERROR_CUDA;
}
#define STN_CHECK_CUDA(call) check((call), __FILE__, __LINE__)

/// Launches a kernel of kThreads threads a block. (Not by <<<>>>, so that tests/cuda_on_cpu can take the call's place.)
template <class... Parameters>
int launch(void (*kernel)(Parameters...), dim3 blocks, cudaStream_t stream, Parameters... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return STN_CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Blocks of a grid-stride loop: all that `items` need, as far as CUDA lets one ask for them.
unsigned blocks_for(int64_t items) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const int64_t blocks = divide_up(items, kThreads);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

template <class T, int Rank, int Count, class Offset>
int launch_planar(const Warp& w, cudaStream_t stream) {
  // Channels are shared out among threads only where there are too few pixels to fill the device.
  constexpr int64_t kEnoughThreads = 1 << 18;
  const int64_t total = w.batch * w.pixels;
  int64_t chunks = total < kEnoughThreads ? divide_up(kEnoughThreads, total) : 1;
  const int64_t most = divide_up(w.channels, 4);
  chunks = chunks < most ? chunks : most;
  chunks = chunks < 65535 ? chunks : 65535;
  const int64_t chunk = divide_up(w.channels, chunks);
  const dim3 blocks(blocks_for(total), static_cast<unsigned>(divide_up(w.channels, chunk)));
  return launch(planar_kernel<T, Rank, Count, Offset>, blocks, stream, w, total, chunk);
}

template <class T, int Rank, int Count, int Width>
int launch_channels_last(const Warp& w, cudaStream_t stream) {
  const int64_t groups = divide_up(w.channels, Width), total = w.batch * w.pixels * groups;
  return launch(channels_last_kernel<T, Rank, Count, Width>, dim3(blocks_for(total)), stream, w, total, groups);
}

/// Whether every pixel of both images starts where a pack of `width` elements may.
bool packable(const Warp& w, int64_t width) {
  const int64_t bytes = width * element_size(w.dtype);
  const bool aligned =
      reinterpret_cast<uintptr_t>(w.input) % bytes == 0 && reinterpret_cast<uintptr_t>(w.output) % bytes == 0;
  // The last group may reach into the padding behind the channels, never into the next pixel.
  const int64_t reach = divide_up(w.channels, width) * width;
  return aligned && w.in_pixel_stride % width == 0 && w.out_pixel_stride % width == 0 && reach <= w.in_pixel_stride &&
         reach <= w.out_pixel_stride;
}

template <class T, int Rank, int Count>
int launch_layout(const Warp& w, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  if (w.channels_last && packable(w, kWidth)) return launch_channels_last<T, Rank, Count, kWidth>(w, stream);
  if (w.channels_last) return launch_channels_last<T, Rank, Count, 1>(w, stream);
  // 64-bit offsets cost registers; what lies outside of the image is computed too, though never read.
  const bool small = w.in_pixels * w.in_pixel_stride < (int64_t{1} << 28);
  return small ? launch_planar<T, Rank, Count, int32_t>(w, stream) : launch_planar<T, Rank, Count, int64_t>(w, stream);
}

template <class T>
int launch_mode(const Warp& w, cudaStream_t stream) {
  switch (w.mode) {
    case STN_NEAREST:
      return w.rank == 2 ? launch_layout<T, 2, 1>(w, stream) : launch_layout<T, 3, 1>(w, stream);
    case STN_BICUBIC:
      return launch_layout<T, 2, 16>(w, stream);
    default:
      return w.rank == 2 ? launch_layout<T, 2, 4>(w, stream) : launch_layout<T, 3, 8>(w, stream);
  }
}

}  // namespace

bool has_cuda() { return true; }

int run_cuda(const Warp& warp, void* stream) {
  if (warp.batch == 0 || warp.channels == 0 || warp.pixels == 0) return STN_OK;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (warp.dtype) {
    case STN_FP32:
      return launch_mode<float>(warp, cuda_stream);
    case STN_FP16:
      return launch_mode<Half>(warp, cuda_stream);
    default:
      return launch_mode<BFloat>(warp, cuda_stream);
  }
}

}  // namespace stn
