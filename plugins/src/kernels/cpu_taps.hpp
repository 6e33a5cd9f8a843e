/// \file cpu_taps.hpp
/// \brief The pixels that a vector of sampling points reads, and reading and weighting them in one channel.
///
/// A sampler's `Taps` are computed once per vector of output pixels and applied to every channel. `coverage` avoids
/// masks in the common cases: all pixels inside the image, or none.
#ifndef STN_KERNELS_CPU_TAPS_HPP_
#define STN_KERNELS_CPU_TAPS_HPP_

#include "kernels/warp.hpp"

namespace stn {
namespace {

enum class Coverage { kInside, kPartly, kOutside };

/// Nearest, in two or three dimensions.
template <class L, int Rank>
struct Nearest {
  static constexpr int kRank = Rank;
  static constexpr bool kQuads = false;

  typename L::Offset at;
  typename L::M valid;
  bool outside;

  STN_HD void find(const Warp& w, const Point<L>& point) {
    using I = typename L::I;
    I index[3] = {I(0), I(0), I(0)};
    valid = vequal(I(0), I(0));
    for (int d = 0; d < Rank; ++d) {
      const NearestTap<L> tap = nearest_tap<L>(unnormalize(point.at[d], w.axis[d]), w.axis[d], w.padding);
      index[d] = vmin(vmax(tap.index, I(0)), I(w.axis[d].size - 1));
      valid = vand(valid, tap.valid);
    }
    at = L::template offset<Rank>(index[0], index[1], index[2], w);
    outside = !vany(valid);
  }

  template <class T>
  STN_HD typename L::F apply(const Warp&, const T* channel) const {
    return outside ? typename L::F(0.0f) : L::gather(channel, at, valid);
  }
};

/// Bilinear (Rank 2) and trilinear (Rank 3): a pair of neighbors in each of 2^(Rank-1) rows.
template <class L, int Rank>
struct Linear {
  static constexpr int kRank = Rank;
  static constexpr int kRows = Rank == 2 ? 2 : 4;
  static constexpr bool kQuads = L::quads;
  using F = typename L::F;
  using I = typename L::I;
  using M = typename L::M;

  typename L::Offset first[kRows];  ///< the pair's left pixel
  F left, right;                    ///< the pair's weights
  F row[kRows];                     ///< each row's weight
  M left_valid, right_valid, row_valid[kRows];
  Coverage coverage;

  STN_HD void find(const Warp& w, const Point<L>& point) {
    F at[Rank];
    M inside = vequal(I(0), I(0));
    for (int d = 0; d < Rank; ++d) {
      at[d] = unnormalize(point.at[d], w.axis[d]);
      inside = vand(inside, vwithin(at[d], w.axis[d].last));
    }
    if (vall(inside)) {
      find_inside(w, at);
    } else {
      find_partly(w, at);
    }
  }

  template <class T>
  STN_HD F apply(const Warp& w, const T* channel) const {
    if (coverage == Coverage::kOutside) return F(0.0f);
    F sum(0.0f), a(0.0f), b(0.0f);
    if (coverage == Coverage::kInside) {
      for (int r = 0; r < kRows; ++r) {
        // All rows of an inner pixel are at fixed offsets from the first: one row and one plane further.
        L::gather_pair(channel + (r % 2 * w.in_row + r / 2 * w.in_plane) * w.in_pixel_stride, first[0], w, &a, &b);
        const F line = vfma(b, right, a * left);
        sum = r == 0 ? line * row[r] : vfma(line, row[r], sum);
      }
      return sum;
    }
    for (int r = 0; r < kRows; ++r) {
      L::gather_pair(channel, first[r], w, vand(left_valid, row_valid[r]), vand(right_valid, row_valid[r]), &a, &b);
      sum = vfma(vfma(b, right, a * left), row[r], sum);
    }
    return sum;
  }

 private:
  /// For points whose pixels are all inside the image, where padding has no effect.
  STN_HD void find_inside(const Warp& w, const F* at) {
    F low[3] = {F(0.0f), F(0.0f), F(0.0f)}, high[3] = {F(0.0f), F(0.0f), F(0.0f)};
    I index[3] = {I(0), I(0), I(0)};
    for (int d = 0; d < Rank; ++d) {
      const F floor = vfloor(at[d]);
      index[d] = vint(floor);
      high[d] = at[d] - floor;
      low[d] = F(1.0f) - high[d];
    }
    first[0] = L::template offset<Rank>(index[0], index[1], index[2], w);
    left = low[0];
    right = high[0];
    for (int r = 0; r < kRows; ++r) {
      row[r] = r % 2 == 0 ? low[1] : high[1];
      if (Rank == 3) row[r] = row[r] * (r < 2 ? low[2] : high[2]);
    }
    coverage = Coverage::kInside;
  }

  STN_HD void find_partly(const Warp& w, const F* at) {
    const LinearTap<L> x = linear_tap<L>(at[0], w.axis[0], w.padding);
    // At the left and right border the pair is shifted into the image; the weights stay with their pixels.
    const I pair = vmax(vmin(x.low, I(w.axis[0].size - 2)), I(0));
    const M same = vequal(x.low, pair);
    left = vselect(same, x.weight_low, x.weight_high);
    right = vselect(same, x.weight_high, x.weight_low);
    left_valid = vor(vand(same, x.valid_low), vand(vequal(x.low + I(1), pair), x.valid_high));
    right_valid = vor(vand(same, x.valid_high), vand(vequal(x.low, pair + I(1)), x.valid_low));
    const M any_row = find_rows(w, at, pair);
    coverage = vany(vand(any_row, vor(x.valid_low, x.valid_high))) ? Coverage::kPartly : Coverage::kOutside;
  }

  /// Computes the rows; returns the lanes in which any row is valid.
  STN_HD M find_rows(const Warp& w, const F* at, I pair) {
    const I bottom(w.axis[1].size - 1);
    const LinearTap<L> y = linear_tap<L>(at[1], w.axis[1], w.padding);
    const I y0 = vmin(vmax(y.low, I(0)), bottom), y1 = vmin(vmax(y.low + I(1), I(0)), bottom);
    const M any_y = vor(y.valid_low, y.valid_high);
    if constexpr (Rank == 2) {
      first[0] = L::template offset<2>(pair, y0, I(0), w);
      first[1] = L::template offset<2>(pair, y1, I(0), w);
      row[0] = y.weight_low;
      row[1] = y.weight_high;
      row_valid[0] = y.valid_low;
      row_valid[1] = y.valid_high;
      return any_y;
    } else {
      const I back(w.axis[2].size - 1);
      const LinearTap<L> z = linear_tap<L>(at[2], w.axis[2], w.padding);
      const I z0 = vmin(vmax(z.low, I(0)), back), z1 = vmin(vmax(z.low + I(1), I(0)), back);
      for (int r = 0; r < 4; ++r) {
        const bool low_y = r % 2 == 0, low_z = r < 2;
        first[r] = L::template offset<3>(pair, low_y ? y0 : y1, low_z ? z0 : z1, w);
        row[r] = (low_y ? y.weight_low : y.weight_high) * (low_z ? z.weight_low : z.weight_high);
        row_valid[r] = vand(low_y ? y.valid_low : y.valid_high, low_z ? z.valid_low : z.valid_high);
      }
      return vand(any_y, vor(z.valid_low, z.valid_high));
    }
  }
};

/// Bicubic, in two dimensions: four by four pixels.
template <class L>
struct Cubic {
  static constexpr int kRank = 2;
  static constexpr bool kQuads = false;
  using F = typename L::F;
  using I = typename L::I;

  CubicTap<L> x, y;

  STN_HD void find(const Warp& w, const Point<L>& point) {
    x = cubic_tap<L>(unnormalize(point.at[0], w.axis[0]), w.axis[0], w.padding);
    y = cubic_tap<L>(unnormalize(point.at[1], w.axis[1]), w.axis[1], w.padding);
  }

  template <class T>
  STN_HD F apply(const Warp& w, const T* channel) const {
    F sum(0.0f);
    for (int r = 0; r < 4; ++r) {
      F line(0.0f);
      for (int c = 0; c < 4; ++c) {
        const F value =
            L::gather(channel, L::template offset<2>(x.index[c], y.index[r], I(0), w), vand(x.valid[c], y.valid[r]));
        line = vfma(value, x.weight[c], line);
      }
      sum = vfma(line, y.weight[r], sum);
    }
    return sum;
  }
};

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_TAPS_HPP_
