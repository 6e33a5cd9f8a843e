/// \file cpu.hpp
/// \brief Running a warp on the CPU, as a number of independent units that any thread pool can work off.
#ifndef STN_KERNELS_CPU_HPP_
#define STN_KERNELS_CPU_HPP_

#include <stdint.h>

#include "kernels/warp.hpp"

namespace stn {

/// How a warp is cut: a unit is one tile of pixels of one sample, for one group of channels.
struct CpuPlan {
  Warp warp;
  int64_t tile;                                                  ///< pixels
  int64_t tiles;                                                 ///< a sample
  int64_t channel_chunk;                                         ///< channels
  int64_t channel_chunks;                                        ///< a sample
  int64_t units;                                                 ///< in all
  void (*run)(const CpuPlan& plan, int64_t begin, int64_t end);  ///< does units [begin, end)
  int64_t grain;                                                 ///< units that are worth a task
};

/// The work of `plan.run`, for one unit.
struct CpuUnit {
  int64_t sample, first_pixel, pixels, first_channel, channels;
};

STN_HD CpuUnit unit_of(const CpuPlan& plan, int64_t index) {
  int64_t chunk = 0, tile = 0;
  CpuUnit unit;
  unit.sample = index;
  // Small images come one to a unit, and divisions would be a tenth of their time.
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

using CpuRun = void (*)(const CpuPlan&, int64_t, int64_t);

// The kernel of each instruction set for a warp; the SIMD ones are NULL where they can't do it.
CpuRun plain_kernel(const Warp& warp);
#ifdef STN_HAVE_X86_SIMD
CpuRun avx2_kernel(const Warp& warp);
CpuRun avx512_kernel(const Warp& warp);
#endif

/// Cuts a warp and picks its kernel for this machine.
CpuPlan plan_cpu(const Warp& warp);

/// The name of the instruction set in use.
const char* cpu_isa();

/// Pixels of a unit at most: so many that setting one up costs little, so few that images can be shared out.
constexpr int kTilePixels = 4096;

/// Pixels whose taps are remembered: they stay in the first-level cache while the channels go by.
constexpr int kBlockPixels = 256;

}  // namespace stn

#endif  // STN_KERNELS_CPU_HPP_
