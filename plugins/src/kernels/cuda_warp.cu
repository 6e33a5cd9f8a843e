/// \file cuda_warp.cu
/// \brief Launching the CUDA kernels: one pass from theta to the warped image, no grid in memory.
///
/// The sampling math is in stn/sampling.hpp, as for the CPU.
#include <cuda_runtime.h>

#include "kernels/cuda.hpp"
#include "kernels/cuda_affine.hpp"
#include "kernels/cuda_device.hpp"
#include "kernels/cuda_kernels.hpp"
#include "kernels/numbers.hpp"

namespace stn {
namespace {

/// Launches a kernel. (Without <<<>>>, so that tests/cuda_on_cpu can replace the call.)
template <class... Parameters>
int launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream, Parameters... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  const LoadsDuringCapture allowed;
  return STN_CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Blocks of a grid-stride loop: as many as `items` need, up to CUDA's limit.
unsigned blocks_for(int64_t items) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const int64_t blocks = divide_up(items, kThreads);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

template <class T, int Rank, int Count, class Offset>
int launch_planar(const Warp& w, cudaStream_t stream) {
  // Channels are split among threads only if there are too few pixels to fill the device.
  constexpr int64_t kEnoughThreads = 1 << 18;
  const int64_t total = w.batch * w.pixels;
  int64_t chunks = total < kEnoughThreads ? divide_up(kEnoughThreads, total) : 1;
  const int64_t most = divide_up(w.channels, 4);
  chunks = chunks < most ? chunks : most;
  chunks = chunks < 65535 ? chunks : 65535;
  const int64_t chunk = divide_up(w.channels, chunks);
  const dim3 blocks(blocks_for(total), static_cast<unsigned>(divide_up(w.channels, chunk)));
  return launch(planar_kernel<T, Rank, Count, Offset>, blocks, kThreads, stream, w, total, chunk);
}

template <class T, int Rank, int Count, int Width>
int launch_channels_last(const Warp& w, cudaStream_t stream) {
  const int64_t groups = divide_up(w.channels, Width), total = w.batch * w.pixels * groups;
  return launch(channels_last_kernel<T, Rank, Count, Width>, dim3(blocks_for(total)), kThreads, stream, w, total,
                groups);
}

/// Whether every pixel of both images is aligned for packs of `width` elements.
bool packable(const Warp& w, int64_t width) {
  const int64_t bytes = width * element_size(w.dtype);
  const bool aligned =
      reinterpret_cast<uintptr_t>(w.input) % bytes == 0 && reinterpret_cast<uintptr_t>(w.output) % bytes == 0;
  // The last pack may extend into the padding after the channels, but not into the next pixel.
  const int64_t reach = divide_up(w.channels, width) * width;
  return aligned && w.in_pixel_stride % width == 0 && w.out_pixel_stride % width == 0 && reach <= w.in_pixel_stride &&
         reach <= w.out_pixel_stride;
}

/// Whether affine_kernel runs a warp of mode bilinear and rank 2. With fewer than 64 pixels, most threads of a block
/// would be idle, and planar_kernel, which packs several samples, is faster.
bool is_plain_affine(const Warp& w) {
  constexpr int64_t kFewPixels = 64, kPixels = int64_t{1} << 28, kColumns = int64_t{1} << 22, kRows = int64_t{1} << 18,
                    kItems = int64_t{1} << 30;
  return w.kind == STN_AFFINE && w.in_pixel_stride == 1 && w.out_pixel_stride == 1 && w.in_pixels < kPixels &&
         w.pixels >= kFewPixels && w.pixels < kPixels && w.batch < kItems / w.channels && w.axis[0].size < kColumns &&
         w.axis[1].size < kColumns && w.out_size[0] < kColumns && w.out_size[1] < kRows;
}

int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value < high ? value : high; }

/// Launches affine_kernel; `Channels` is the number of channels, or 0 for any number.
template <class T, int Channels>
int launch_affine(const Warp& w, cudaStream_t stream) {
  AffineTiles tiles{};
  // Sixteen columns: 32 threads cover two rows, so that rotated images are read from few cache lines and 16-bit outputs
  // are written in full sectors. Narrow images have narrower tiles, and images with few rows have wider ones.
  tiles.log_width = 4;
  while (tiles.log_width > 0 && (1 << tiles.log_width) / 2 >= w.out_size[0]) --tiles.log_width;
  while ((kAffineThreads >> tiles.log_width) / 2 >= w.out_size[1] && (1 << tiles.log_width) < w.out_size[0]) {
    ++tiles.log_width;
  }
  const int64_t width = int64_t{1} << tiles.log_width;
  tiles.rows = static_cast<int32_t>(kAffineThreads / width);
  // Several rows per thread if there are enough threads; several chunks of channels if there are too few.
  constexpr int64_t kEnoughThreads = 1 << 18, kMostSteps = 8;
  const int64_t total = w.batch * w.pixels, steps = divide_up(w.out_size[1], tiles.rows);
  const int64_t down = divide_up(steps, clamp(divide_up(total, kEnoughThreads), 1, kMostSteps));
  tiles.height = static_cast<int32_t>(divide_up(steps, down) * tiles.rows);
  const int64_t chunks = Channels != 0 ? 1 : clamp(divide_up(kEnoughThreads, total), 1, divide_up(w.channels, 4));
  tiles.chunk = static_cast<int32_t>(divide_up(w.channels, chunks));
  tiles.chunks = static_cast<int32_t>(divide_up(w.channels, tiles.chunk));
  tiles.items = static_cast<int32_t>(w.batch * tiles.chunks);
  tiles.in_channel = static_cast<int32_t>(w.in_channel_stride);
  tiles.out_channel = static_cast<int32_t>(w.out_channel_stride);
  tiles.out_step = tiles.rows * w.out_size[0];
  tiles.position_step = static_cast<float>(2 * tiles.rows);
  tiles.inner_width = static_cast<uint32_t>(w.axis[0].size - 1);
  tiles.inner_height = static_cast<uint32_t>(w.axis[1].size - 1);
  const dim3 blocks(static_cast<unsigned>(divide_up(w.out_size[0], width)), static_cast<unsigned>(down),
                    static_cast<unsigned>(clamp(tiles.items, 1, 65535)));
  return launch(affine_kernel<T, Channels>, blocks, kAffineThreads, stream, w, tiles);
}

template <class T, int Rank, int Count>
int launch_layout(const Warp& w, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  if (w.channels_last && packable(w, kWidth)) return launch_channels_last<T, Rank, Count, kWidth>(w, stream);
  if (w.channels_last) return launch_channels_last<T, Rank, Count, 1>(w, stream);
  if constexpr (Rank == 2 && Count == 4) {
    if (is_plain_affine(w)) {
      if (w.channels == 1) return launch_affine<T, 1>(w, stream);
      if (w.channels == 3) return launch_affine<T, 3>(w, stream);
      return launch_affine<T, 0>(w, stream);
    }
  }
  // 64-bit offsets cost registers. Offsets outside of the image are computed too, but never read.
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

bool cuda_usable(int device) { return loads_on(device); }

const char* cuda_error() { return last_error; }

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
