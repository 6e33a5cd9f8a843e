/// \file packing.hpp
/// \brief The memory of cpu_packed.hpp, and its sizes.
#ifndef STN_KERNELS_PACKING_HPP_
#define STN_KERNELS_PACKING_HPP_

#include "kernels/cpu.hpp"

namespace stn {

/// Channels of a group, which are adjacent in a window.
constexpr int kGroup = 16;

/// Fewer channels are not worth a copy.
constexpr int kFewestChannels = 8;

/// The most pixels of a window: 512 KiB.
constexpr int kWindowPixels = 8192;

/// The longest vector.
constexpr int kWidest = 16;

/// The memory of one thread for one box.
struct Packing {
  /// A pixel of zeros, the window's pixels, and the rest of a last vector: [pixels][kGroup].
  alignas(64) float pixels[(1 + kWindowPixels + kWidest) * kGroup];
  /// Sampling points in pixels, one array per coordinate. A run starts at a multiple of kWidest.
  alignas(64) float at[3][kTilePixels];
};

/// This thread's memory, which it keeps; NULL if there is none.
Packing* packing_of_thread();

}  // namespace stn

#endif  // STN_KERNELS_PACKING_HPP_
