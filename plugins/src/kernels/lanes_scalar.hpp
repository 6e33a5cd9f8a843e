/// \file lanes_scalar.hpp
/// \brief Lanes of width one for the CPU kernels, for all sizes, layouts and instruction sets.
#ifndef STN_KERNELS_LANES_SCALAR_HPP_
#define STN_KERNELS_LANES_SCALAR_HPP_

#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {

/// `Scalar` with loads and stores. The wider lane types have the same members.
struct ScalarLanes : Scalar {
  /// The offset of a pixel in a channel, in elements.
  using Offset = int64_t;
  static constexpr bool quads = false;

  static STN_HD I iota() { return 0; }
  static STN_HD F load(const float* from, int) { return *from; }
  template <class T>
  static STN_HD F load_values(const T* from, int) {
    return to_float(*from);
  }
  template <int Rank>
  static STN_HD void deinterleave(F*) {}

  template <int Rank>
  static STN_HD Offset offset(I x, I y, I z, const Warp& w) {
    return (x + y * w.in_row + (Rank == 3 ? z * w.in_plane : 0)) * w.in_pixel_stride;
  }

  /// The value at an offset, 0 where `mask` is false.
  template <class T>
  static STN_HD F gather(const T* base, Offset at, M mask) {
    return mask ? to_float(base[at]) : 0.0f;
  }

  /// The values at an offset and one pixel to the right.
  template <class T>
  static STN_HD void gather_pair(const T* base, Offset at, const Warp& w, F* left, F* right) {
    *left = to_float(base[at]);
    *right = to_float(base[at + w.in_pixel_stride]);
  }

  template <class T>
  static STN_HD void gather_pair(const T* base, Offset at, const Warp& w, M left_mask, M right_mask, F* left,
                                 F* right) {
    *left = left_mask ? to_float(base[at]) : 0.0f;
    *right = right_mask ? to_float(base[at + w.in_pixel_stride]) : 0.0f;
  }

  /// Writes the first `count` lanes.
  template <class T>
  static STN_HD void store(T* to, F value, int) {
    from_float(value, to);
  }
};

}  // namespace stn

#endif  // STN_KERNELS_LANES_SCALAR_HPP_
