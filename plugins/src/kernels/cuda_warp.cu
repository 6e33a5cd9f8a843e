/// \file cuda_warp.cu
/// \brief Launching the CUDA kernels: one pass from theta to the warped image, no grid in memory.
///
/// The sampling math is in stn/sampling.hpp, as for the CPU.
#include <cuda_runtime.h>

#include "kernels/cuda.hpp"
#include "kernels/cuda_affine.hpp"
#include "kernels/cuda_basis.hpp"
#include "kernels/cuda_columns.hpp"
#include "kernels/cuda_device.hpp"
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

int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value < high ? value : high; }

/// Whether 32-bit offsets reach every pixel of an item, and floats count the pixels of each side. Offsets outside of
/// the image are computed too, but never read.
bool is_small(const Warp& w) {
  constexpr int64_t kElements = int64_t{1} << 28, kSide = int64_t{1} << 22, kItems = int64_t{1} << 30;
  return w.in_pixels < kElements / w.in_pixel_stride && w.pixels < kElements / w.out_pixel_stride &&
         w.axis[0].size < kSide && w.axis[1].size < kSide && w.out_size[0] < kSide && w.out_size[1] < kSide &&
         w.batch < kItems / w.channels;
}

/// How a warp is divided. A thread computes `pack` channels of a pixel, or all channels of its item if `pack` is 0, in
/// `samples` samples.
Tiles tiles_for(const Warp& w, int64_t pack, int64_t samples, dim3* blocks) {
  Tiles tiles{};
  tiles.packs = static_cast<int32_t>(pack == 0 ? 1 : divide_up(w.channels, pack));
  tiles.lines = int64_t{w.out_size[1]} * w.out_size[2];
  const int64_t across = int64_t{w.out_size[0]} * tiles.packs;
  // Sixteen columns: 32 threads cover two rows, so that rotated images are read from few cache lines and 16-bit outputs
  // are written in full sectors. Packs are written in full sectors and lines if 32 of them are neighbors. Narrow images
  // have narrower tiles, images with few rows have wider ones, and small images share a block.
  const auto narrower = [](int log, int64_t size) {
    while (log > 0 && (int64_t{1} << log) / 2 >= size) --log;
    return log;
  };
  tiles.log_width = narrower(pack == 0 ? 4 : 5, across);
  tiles.log_lines = narrower(kLogThreads - tiles.log_width, tiles.lines);
  const int free = kLogThreads - tiles.log_width - tiles.log_lines;
  tiles.log_width = narrower(tiles.log_width + free, across);
  const int64_t width = int64_t{1} << tiles.log_width, lines = int64_t{1} << tiles.log_lines;
  // Several lines per thread if there are enough threads; several chunks of channels if there are too few.
  constexpr int64_t kEnoughThreads = 1 << 18, kMostBlocks = 65535;
  const int64_t most_steps = pack == 0 ? 8 : 16;
  const int64_t groups = divide_up(w.batch, samples), total = groups * w.pixels * tiles.packs;
  const int64_t steps = divide_up(tiles.lines, lines);
  const int64_t wanted = divide_up(steps, clamp(divide_up(total, kEnoughThreads), 1, most_steps));
  tiles.height = divide_up(steps, wanted < kMostBlocks ? wanted : kMostBlocks) * lines;
  const int64_t chunks = pack != 0 ? 1 : clamp(divide_up(kEnoughThreads, total), 1, divide_up(w.channels, 4));
  tiles.chunk = static_cast<int32_t>(divide_up(w.channels, chunks));
  tiles.chunks = pack != 0 ? 1 : static_cast<int32_t>(divide_up(w.channels, tiles.chunk));
  tiles.items = groups * tiles.chunks;
  tiles.y_step = static_cast<int32_t>(w.rank == 3 ? lines % w.out_size[1] : lines);
  tiles.z_step = static_cast<int32_t>(w.rank == 3 ? lines / w.out_size[1] : 0);
  tiles.out_step = static_cast<int32_t>(lines * w.out_size[0] * w.out_pixel_stride);
  tiles.in_pixel = static_cast<int32_t>(w.in_pixel_stride);
  tiles.in_channel = static_cast<int32_t>(w.in_channel_stride);
  tiles.out_channel = static_cast<int32_t>(w.out_channel_stride);
  tiles.in_row = static_cast<int32_t>(w.in_row * w.in_pixel_stride);
  tiles.position_step = static_cast<float>(2 * lines);
  tiles.inner_width = static_cast<uint32_t>(w.axis[0].size - 1);
  tiles.inner_height = static_cast<uint32_t>(w.axis[1].size - 1);
  tiles.aligned_grid = reinterpret_cast<uintptr_t>(w.theta) % (2 * element_size(w.grid_dtype)) == 0;
  tiles.from_matrix = w.kind == STN_AFFINE;
  tiles.from_quotient = w.kind == STN_PROJECTIVE;
  tiles.from_centers = tiles.from_matrix || (tiles.from_quotient && w.basis == nullptr);
  tiles.from_grid = w.kind == STN_GRID;
  const int64_t items = divide_up(tiles.items, kThreads / width / lines);
  *blocks =
      dim3(static_cast<unsigned>(divide_up(across, width)), static_cast<unsigned>(divide_up(tiles.lines, tiles.height)),
           static_cast<unsigned>(clamp(items, 1, kMostBlocks)));
  return tiles;
}

/// Whether basis_kernel runs a warp: one that fills the device although a thread has several samples.
template <class Layout, int Rank, int Count>
bool is_together(const Warp& w) {
  constexpr int64_t kEnoughPixels = int64_t{1} << 20;
  return Layout::kManySamples && Rank == 2 && Count == 4 && w.kind == STN_BASIS && w.theta_stride != 0 &&
         w.batch * w.pixels >= kEnoughPixels;
}

/// Launches the kernel for a layout; `pack` as for tiles_for.
template <class Layout, int Rank, int Count>
int launch_layout(const Warp& w, int64_t pack, cudaStream_t stream) {
  dim3 blocks;
  const bool together = is_together<Layout, Rank, Count>(w);
  const Tiles tiles = tiles_for(w, pack, together ? kTogether : 1, &blocks);
  if constexpr (Rank == 2 && Count == 4 && sizeof(typename Layout::Offset) == 4) {
    // More rows could not be counted in floats.
    if (w.kind == STN_AFFINE && w.out_size[1] < 1 << 18) {
      return launch(affine_kernel<Layout>, blocks, kThreads, stream, w, tiles);
    }
  }
  if constexpr (Rank == 2 && Count == 4 && Layout::kManySamples) {
    if (together) return launch(basis_kernel<Layout>, blocks, kThreads, stream, w, tiles);
  }
  return launch(column_kernel<Layout, Rank, Count>, blocks, kThreads, stream, w, tiles);
}

template <class T, int Rank, int Count>
int launch_taps(const Warp& w, cudaStream_t stream) {
  if (!is_small(w) || w.mixed_layouts) return launch_layout<Planes<T, int64_t, 0, false>, Rank, Count>(w, 0, stream);
  if (w.channels_last) {
    constexpr int kWidth = 16 / sizeof(T);
    return packable(w, kWidth) ? launch_layout<Packs<T, kWidth>, Rank, Count>(w, kWidth, stream)
                               : launch_layout<Packs<T, 1>, Rank, Count>(w, 1, stream);
  }
  if constexpr (Rank == 2 && Count <= 4) {
    if (w.channels == 1) return launch_layout<Planes<T, int32_t, 1, true>, Rank, Count>(w, 0, stream);
    if (w.channels == 3) return launch_layout<Planes<T, int32_t, 3, true>, Rank, Count>(w, 0, stream);
  }
  return launch_layout<Planes<T, int32_t, 0, true>, Rank, Count>(w, 0, stream);
}

template <class T>
int launch_mode(const Warp& w, cudaStream_t stream) {
  switch (w.mode) {
    case STN_NEAREST:
      return w.rank == 2 ? launch_taps<T, 2, 1>(w, stream) : launch_taps<T, 3, 1>(w, stream);
    case STN_BICUBIC:
      return launch_taps<T, 2, 16>(w, stream);
    default:
      return w.rank == 2 ? launch_taps<T, 2, 4>(w, stream) : launch_taps<T, 3, 8>(w, stream);
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
