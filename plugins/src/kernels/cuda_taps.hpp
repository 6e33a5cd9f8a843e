/// \file cuda_taps.hpp
/// \brief On the device: the image pixels that an output pixel reads, for every mode and padding.
#ifndef STN_KERNELS_CUDA_TAPS_HPP_
#define STN_KERNELS_CUDA_TAPS_HPP_

#include <cuda_runtime.h>

#include "kernels/warp.hpp"

namespace stn {
namespace {

/// The pixels that one output pixel reads, as offsets into a channel and weights; only `valid` ones are used.
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
    const NearestTap<Scalar> tap = nearest_tap<Scalar>(unnormalize(point.at[d], w.axis[d]), w.axis[d], w.padding);
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
    tap[d] = linear_tap<Scalar>(unnormalize(point.at[d], w.axis[d]), w.axis[d], w.padding);
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
  const CubicTap<Scalar> x = cubic_tap<Scalar>(unnormalize(point.at[0], w.axis[0]), w.axis[0], w.padding);
  const CubicTap<Scalar> y = cubic_tap<Scalar>(unnormalize(point.at[1], w.axis[1]), w.axis[1], w.padding);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    taps->at[i] = offset_of<Offset>(w, x.index[i % 4], y.index[i / 4], 0);
    taps->weight[i] = x.weight[i % 4] * y.weight[i / 4];
    taps->valid[i] = x.valid[i % 4] && y.valid[i / 4];
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_TAPS_HPP_
