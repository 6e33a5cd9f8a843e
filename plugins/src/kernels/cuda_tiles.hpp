/// \file cuda_tiles.hpp
/// \brief How the CUDA kernels divide a warp among threads: a thread has one column of the output and walks down it.
///
/// What depends on the column, the sample or the channels is then computed once for several pixels, and no thread
/// divides to find its pixel. Blocks of few threads, so that each has several rows even for small images.
#ifndef STN_KERNELS_CUDA_TILES_HPP_
#define STN_KERNELS_CUDA_TILES_HPP_

#include <cuda_runtime.h>
#include <stdint.h>

namespace stn {
namespace {

/// Threads per block, and its logarithm.
constexpr int kThreads = 128, kLogThreads = 7;

/// The partition of the work, and other values that are equal for all threads. A block has a tile of columns and lines
/// (blockIdx.x and y) and every gridDim.z-th group of items. A line is a row of an image or of a plane of a volume; an
/// item is one sample, or a chunk of channels of one sample.
struct Tiles {
  int32_t log_width;  ///< a tile is 2^log_width threads wide
  int32_t log_lines;  ///< its threads start in 2^log_lines lines, in as many items as the block has threads left for
  int64_t height;     ///< lines of a tile, a multiple of 2^log_lines
  int64_t lines;      ///< of an output channel
  int32_t packs;      ///< neighboring threads with the same pixel: packs of channels, else 1
  int32_t chunks;     ///< chunks of channels
  int32_t chunk;      ///< channels in a chunk
  int64_t items;      ///< batch * chunks
  int32_t y_step;     ///< from one of a thread's lines to its next: rows ...
  int32_t z_step;     ///< ... and planes
  int32_t out_step;   ///< elements from one of a thread's lines to its next
  // Elements from one pixel, row or channel of an image of fewer than 2^28 to the next.
  int32_t in_pixel;
  int32_t in_row;
  int32_t in_channel;
  int32_t out_channel;
  float position_step;    ///< 2 * rows
  uint32_t inner_width;   ///< the input's width - 1: the columns that have a right neighbor
  uint32_t inner_height;  ///< likewise
  bool aligned_grid;      ///< whether the coordinates of a grid's points can be read in pairs
  // Where points come from. Not one number, whose tests would become an indirect jump for each pixel.
  bool from_matrix;    ///< affine
  bool from_quotient;  ///< projective
  bool from_centers;   ///< the pixels' centers, rather than a basis
  bool from_grid;
};

/// A thread's first pixel and first item.
template <class Offset>
struct Place {
  int32_t column;
  int32_t pack;  ///< of channels
  Offset line;
  Offset after_lines;  ///< the end of the tile
  Offset item;
  Offset item_step;  ///< to its next item
};

template <class Offset, bool Packed>
__device__ __forceinline__ Place<Offset> place_of(const Tiles& tiles) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x), log_used = tiles.log_width + tiles.log_lines;
  const int32_t across = static_cast<int32_t>(blockIdx.x << tiles.log_width) + (thread & ((1 << tiles.log_width) - 1));
  Place<Offset> place{across, 0, 0, 0, 0, 0};
  if (Packed) {
    place.column = static_cast<int32_t>(static_cast<uint32_t>(across) / static_cast<uint32_t>(tiles.packs));
    place.pack = across - place.column * tiles.packs;
  }
  const Offset first = static_cast<Offset>(blockIdx.y) * static_cast<Offset>(tiles.height);
  place.line = first + ((thread >> tiles.log_width) & ((1 << tiles.log_lines) - 1));
  place.after_lines = min(static_cast<Offset>(tiles.lines), first + static_cast<Offset>(tiles.height));
  place.item = static_cast<Offset>(blockIdx.z << (kLogThreads - log_used)) + (thread >> log_used);
  place.item_step = static_cast<Offset>(gridDim.z << (kLogThreads - log_used));
  return place;
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_TILES_HPP_
