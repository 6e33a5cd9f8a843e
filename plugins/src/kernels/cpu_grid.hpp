/// \file cpu_grid.hpp
/// \brief Iterates over the output pixels of one sample and computes their sampling points, one vector at a time.
#ifndef STN_KERNELS_CPU_GRID_HPP_
#define STN_KERNELS_CPU_GRID_HPP_

#include "kernels/cpu_points.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {
// Internal linkage: this code is compiled once per instruction set, and the linker must not merge the copies.
namespace {

template <class L, int Rank>
class GridWalk {
  using F = typename L::F;
  using I = typename L::I;

 public:
  /// Starts at pixel `first` of sample `n`; `points` are those of the pixels from there on, if they come from a
  /// lattice.
  GridWalk(const Warp& w, int64_t n, int64_t first, const Points* points) : w_(w), points_(points), pixel_(first) {
    if (from_lattice(w.kind)) {
      pixel_ = 0;
      return;
    }
    const int64_t theta_at = n * w.theta_stride;
    const int64_t element = w.kind == STN_GRID ? element_size(w.grid_dtype) : 4;
    theta_ = static_cast<const char*>(w.theta) + theta_at * element;
    if (w.kind == STN_BASIS || w.kind == STN_GRID || w.basis != nullptr) return;
    // A vector may span rows, so that it is always full: column, row and slice of each lane, with carries.
    const int32_t columns = w.out_size[0], rows = w.out_size[1];
    if (first != 0) {
      x_ = I(static_cast<int32_t>(first % columns));
      y_ = I(static_cast<int32_t>(first / columns % rows));
      z_ = I(static_cast<int32_t>(first / columns / rows));
    }
    x_ = x_ + L::iota();
    for (int lane = 1; lane < L::width; lane += columns) carry();
    step_x_ = L::width;
    if (columns <= L::width) {
      step_x_ = L::width % columns;
      step_y_ = L::width / columns % rows;
      step_z_ = L::width / columns / rows;
    }
  }

  /// The points of the next `count` pixels (at most L::width); the other lanes are undefined.
  STN_HD Point<L> next(int count) {
    switch (w_.kind) {
      case STN_AFFINE: {
        const Point<L> point = affine_point<L, Rank>(theta<float>(), center());
        advance();
        return point;
      }
      case STN_BASIS: {
        Point<L> point{{F(0.0f), F(0.0f), F(0.0f)}};
        from_basis<Rank>(count, point.at);
        return point;
      }
      case STN_PROJECTIVE: {
        F sums[Rank + 1];
        if (w_.basis != nullptr) {
          from_basis<Rank + 1>(count, sums);
        } else {
          projective_rows<L, Rank>(theta<float>(), center(), sums);
          advance();
        }
        return w_.quotient ? divide<L, Rank>(sums, w_.w_min, w_.offset) : divide<L, Rank>(sums);
      }
      case STN_GRID:
        return from_grid(count);
      default: {
        Point<L> point{{F(0.0f), F(0.0f), F(0.0f)}};
        for (int d = 0; d < Rank; ++d) point.at[d] = L::load(points_->at[d] + pixel_, count);
        pixel_ += L::width;
        return point;
      }
    }
  }

 private:
  template <class T>
  STN_HD const T* theta() const {
    return static_cast<const T*>(theta_);
  }

  STN_HD Point<L> center() const {
    Point<L> at;
    at.at[0] = pixel_center<L>(x_, w_.out_size[0], w_.inverse_out_size[0]);
    at.at[1] = pixel_center<L>(y_, w_.out_size[1], w_.inverse_out_size[1]);
    at.at[2] = Rank == 3 ? pixel_center<L>(z_, w_.out_size[2], w_.inverse_out_size[2]) : F(0.0f);
    return at;
  }

  STN_HD void carry() {
    const typename L::M over_x = vnot_less(x_, w_.out_size[0]);
    x_ = vselect(over_x, x_ - I(w_.out_size[0]), x_);
    y_ = vselect(over_x, y_ + I(1), y_);
    if (Rank == 2) return;
    const typename L::M over_y = vnot_less(y_, w_.out_size[1]);
    y_ = vselect(over_y, y_ - I(w_.out_size[1]), y_);
    z_ = vselect(over_y, z_ + I(1), z_);
  }

  STN_HD void advance() {
    x_ = x_ + I(step_x_);
    y_ = y_ + I(step_y_);
    if (Rank == 3) z_ = z_ + I(step_z_);
    carry();
  }

  /// theta · basis: `Rows` sums over K, written to `to`.
  template <int Rows>
  STN_HD void from_basis(int count, F* to) {
    const float* basis = w_.basis + pixel_;
    const float* t = theta<float>();
    const int32_t k_count = w_.rows;
    F sum[4] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f)};
    for (int32_t k = 0; k < k_count; ++k) {
      const F b = L::load(basis + k * w_.pixels, count);
      for (int row = 0; row < Rows; ++row) sum[row] = vfma(F(t[row * k_count + k]), b, sum[row]);
    }
    for (int row = 0; row < Rows; ++row) to[row] = sum[row];
    pixel_ += L::width;
  }

  STN_HD Point<L> from_grid(int count) {
    switch (w_.grid_dtype) {
      case STN_FP32:
        return read_points(theta<float>(), count);
      case STN_FP16:
        return read_points(theta<Half>(), count);
      default:
        return read_points(theta<BFloat>(), count);
    }
  }

  template <class T>
  STN_HD Point<L> read_points(const T* grid, int count) {
    const T* from = grid + pixel_ * Rank;
    Point<L> point;
    for (int d = 0; d < 3; ++d) point.at[d] = F(0.0f);
    if (count == L::width) {
      for (int d = 0; d < Rank; ++d) point.at[d] = L::load_values(from + d * L::width, L::width);
    } else {
      for (int d = 0; d < Rank && count * Rank > d * L::width; ++d) {
        const int rest = count * Rank - d * L::width;
        point.at[d] = L::load_values(from + d * L::width, rest < L::width ? rest : L::width);
      }
    }
    L::template deinterleave<Rank>(point.at);
    pixel_ += L::width;
    return point;
  }

  const Warp& w_;
  const Points* points_;
  const void* theta_ = nullptr;
  int64_t pixel_;
  I x_{0}, y_{0}, z_{0};
  int32_t step_x_ = 0, step_y_ = 0, step_z_ = 0;
};

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_GRID_HPP_
