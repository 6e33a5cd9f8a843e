/// \file cpu.hpp
/// \brief Running a warp on the CPU, split into independent units for any thread pool.
#ifndef STN_KERNELS_CPU_HPP_
#define STN_KERNELS_CPU_HPP_

#include <stdint.h>

#include <memory>

#include "kernels/warp.hpp"

namespace stn {

/// Pixels of a row that share one band.
constexpr int kBandPixels = 16;

/// How many bands a row of `width` pixels has.
STN_HD int64_t bands_of(int64_t width) { return (width + kBandPixels - 1) / kBandPixels; }

/// Where the matrix of x is not zero, for the pixels of one band: lattice columns [first, last).
struct Band {
  int32_t first, last;
  const float* weights;  ///< [last - first, kBandPixels]
};

/// One unit of a plan: a tile of pixels of one sample, for one chunk of channels.
struct CpuUnit {
  int64_t sample, first_pixel, pixels, first_channel, channels;
};

/// How a warp is split into units.
struct CpuPlan {
  Warp warp;
  int64_t tile;                                                  ///< pixels per tile
  int64_t tiles;                                                 ///< tiles per sample
  int64_t channel_chunk;                                         ///< channels per chunk
  int64_t channel_chunks;                                        ///< chunks per sample
  int64_t units;                                                 ///< total units
  void (*run)(const CpuPlan& plan, int64_t begin, int64_t end);  ///< runs units [begin, end)
  int64_t grain;                                                 ///< minimum units per task
  bool packed;                                                   ///< tiles are boxes, see `box_of`
  int32_t box[3];                                                ///< a box's size in (x, y, z) order
  int32_t boxes[3];                                              ///< boxes along each axis
  const CpuUnit* given;                                          ///< the units themselves, or NULL
  std::unique_ptr<Band[]> bands;                                 ///< owns `warp.bands`
  std::unique_ptr<float[]> weights;                              ///< owns theirs
};

STN_HD CpuUnit unit_of(const CpuPlan& plan, int64_t index) {
  if (plan.given != nullptr) return plan.given[index];
  int64_t chunk = 0, tile = 0;
  CpuUnit unit;
  unit.sample = index;
  // A small image is one unit, and the divisions would take a tenth of its time.
  if (plan.channel_chunks != 1) {
    chunk = unit.sample % plan.channel_chunks;
    unit.sample /= plan.channel_chunks;
  }
  if (plan.tiles != 1) {
    tile = unit.sample % plan.tiles;
    unit.sample /= plan.tiles;
  }
  unit.first_pixel = tile * plan.tile;
  unit.pixels = plan.warp.pixels - unit.first_pixel < plan.tile ? plan.warp.pixels - unit.first_pixel : plan.tile;
  unit.first_channel = chunk * plan.channel_chunk;
  const int64_t rest = plan.warp.channels - unit.first_channel;
  unit.channels = rest < plan.channel_chunk ? rest : plan.channel_chunk;
  return unit;
}

/// One unit of `plan.run` if tiles are boxes.
struct CpuBox {
  int32_t first[3], size[3];
  int64_t sample, first_channel, channels;
};

STN_HD CpuBox box_of(const CpuPlan& plan, int64_t index) {
  CpuBox box;
  box.first_channel = index % plan.channel_chunks * plan.channel_chunk;
  const int64_t rest = plan.warp.channels - box.first_channel;
  box.channels = rest < plan.channel_chunk ? rest : plan.channel_chunk;
  index /= plan.channel_chunks;
  for (int d = 0; d < 3; ++d) {
    box.first[d] = static_cast<int32_t>(index % plan.boxes[d]) * plan.box[d];
    const int32_t left = plan.warp.out_size[d] - box.first[d];
    box.size[d] = left < plan.box[d] ? left : plan.box[d];
    index /= plan.boxes[d];
  }
  box.sample = index;
  return box;
}

using CpuRun = void (*)(const CpuPlan&, int64_t, int64_t);

// The kernel of each instruction set for a warp; the SIMD ones are NULL if they do not support the warp. With `packed`,
// the kernel for planar images of many channels.
CpuRun plain_kernel(const Warp& warp);
#ifdef STN_HAVE_X86_SIMD
CpuRun avx2_kernel(const Warp& warp, bool packed);
CpuRun avx512_kernel(const Warp& warp, bool packed);
#endif

/// Splits a warp into units and selects its kernel for this machine; `run` is NULL if there is no memory.
CpuPlan plan_cpu(const Warp& warp);

/// The name of the instruction set in use.
const char* cpu_isa();

/// Maximum pixels per unit: large enough to amortize the setup of a unit, small enough to split images among threads.
constexpr int kTilePixels = 4096;

/// Pixels per block of stored taps, which stay in the L1 cache while the kernel iterates over channels.
constexpr int kBlockPixels = 256;

}  // namespace stn

#endif  // STN_KERNELS_CPU_HPP_
