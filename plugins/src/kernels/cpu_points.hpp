/// \file cpu_points.hpp
/// \brief Sampling points from a lattice of control points, for the pixels of one unit.
///
/// A tensor product is contracted along z and y once per row of pixels, then along x for each vector of pixels. The
/// matrices of coarse grids and splines are mostly zero: `bands` says where they are not.
#ifndef STN_KERNELS_CPU_POINTS_HPP_
#define STN_KERNELS_CPU_POINTS_HPP_

#include "kernels/cpu.hpp"
#include "kernels/warp.hpp"

namespace stn {

/// Pixels of a row that share one band.
constexpr int kBandPixels = 16;

/// Where a tensor product's matrices are not zero, as ranges [first, last) of lattice points: for every block of
/// kBandPixels pixels of a row, then for every row, then for every plane.
struct Bands {
  STN_HD explicit Bands(const Warp& w) : w_(w), blocks_((w.out_size[0] + kBandPixels - 1) / kBandPixels) {}

  STN_HD int64_t count() const { return 2 * (int64_t{blocks_} + w_.out_size[1] + w_.out_size[2]); }
  STN_HD int64_t of_block(int32_t block) const { return 2 * int64_t{block}; }
  STN_HD int64_t of_row(int32_t row) const { return 2 * (int64_t{blocks_} + row); }
  STN_HD int64_t of_plane(int32_t plane) const { return 2 * (int64_t{blocks_} + w_.out_size[1] + plane); }

  /// The range at `place`, of at most `size` points.
  STN_HD void range(int64_t place, int32_t size, int32_t* first, int32_t* last) const {
    *first = w_.bands == nullptr ? 0 : w_.bands[place];
    *last = w_.bands == nullptr ? size : w_.bands[place + 1];
  }

  /// The range of `pixels` pixels of a row from `x` on, which lie in one or two blocks.
  STN_HD void range_of_pixels(int32_t x, int pixels, int32_t size, int32_t* first, int32_t* last) const {
    range(of_block(x / kBandPixels), size, first, last);
    const int32_t other = (x + pixels - 1) / kBandPixels;
    if (other == x / kBandPixels) return;
    int32_t other_first, other_last;
    range(of_block(other), size, &other_first, &other_last);
    *first = other_first < *first ? other_first : *first;
    *last = other_last > *last ? other_last : *last;
  }

 private:
  const Warp& w_;
  int32_t blocks_;
};

// Internal linkage: this code is compiled once per instruction set, and the linker must not merge the copies.
namespace {

/// The sampling points of a unit's pixels, one array per coordinate.
struct Points {
  alignas(64) float at[3][kTilePixels];
};

/// Lattice columns that are contracted at a time.
constexpr int kChunk = 256;

/// Rows and planes contracted: `sums` [Rank][kChunk], for `columns` lattice columns from `first` on.
template <int Rank>
void contract_row(const Warp& w, const float* theta, const Bands& bands, int32_t y, int32_t z, int32_t first,
                  int columns, float (*sums)[kChunk]) {
  for (int d = 0; d < Rank; ++d) {
    for (int j = 0; j < columns; ++j) sums[d][j] = 0.0f;
  }
  int32_t row, last_row, plane = 0, last_plane = 1;
  bands.range(bands.of_row(y), w.lattice[1], &row, &last_row);
  if (Rank == 3) bands.range(bands.of_plane(z), w.lattice[2], &plane, &last_plane);
  const int64_t slice = int64_t{w.lattice[0]} * w.lattice[1];
  const float* rows = w.lattice_axes[1] + int64_t{y} * w.lattice[1];
  for (int32_t k = plane; k < last_plane; ++k) {
    const float of_plane = Rank == 3 ? w.lattice_axes[2][int64_t{z} * w.lattice[2] + k] : 1.0f;
    for (int32_t i = row; i < last_row; ++i) {
      const float weight = of_plane * rows[i];
      for (int d = 0; d < Rank; ++d) {
        const float* from = theta + d * int64_t{w.rows} + k * slice + int64_t{i} * w.lattice[0] + first;
        for (int j = 0; j < columns; ++j) sums[d][j] += weight * from[j];
      }
    }
  }
}

/// Adds the product of `sums` and the matrix of x to the points of `pixels` pixels of a row, from column `x` on.
template <class L, int Rank>
void contract_columns(const Warp& w, const Bands& bands, const float (*sums)[kChunk], int32_t first, int columns,
                      int32_t x, int pixels, int64_t to, Points* points) {
  using F = typename L::F;
  const int64_t width = w.out_size[0];
  for (int v = 0; v < pixels; v += L::width) {
    const int count = pixels - v < L::width ? pixels - v : L::width;
    int32_t begin, end;
    bands.range_of_pixels(x + v, count, w.lattice[0], &begin, &end);
    begin = begin > first ? begin : first;
    end = end < first + columns ? end : first + columns;
    F sum[3] = {F(0.0f), F(0.0f), F(0.0f)};
    if (first != 0) {
      for (int d = 0; d < Rank; ++d) sum[d] = L::load(points->at[d] + to + v, count);
    }
    for (int32_t j = begin; j < end; ++j) {
      const F weight = L::load(w.lattice_axes[0] + j * width + x + v, count);
      for (int d = 0; d < Rank; ++d) sum[d] = vfma(F(sums[d][j - first]), weight, sum[d]);
    }
    for (int d = 0; d < Rank; ++d) L::store(points->at[d] + to + v, sum[d], count);
  }
}

/// The points of a unit of a tensor product, row by row.
template <class L, int Rank>
void tensor_product_points(const Warp& w, const float* theta, const CpuUnit& unit, Points* points) {
  const Bands bands(w);
  const int64_t width = w.out_size[0], height = w.out_size[1];
  int32_t x = static_cast<int32_t>(unit.first_pixel % width);
  int32_t y = static_cast<int32_t>(unit.first_pixel / width % height);
  int32_t z = static_cast<int32_t>(unit.first_pixel / width / height);
  float sums[3][kChunk];
  for (int64_t done = 0; done < unit.pixels;) {
    const int64_t rest = unit.pixels - done;
    const int pixels = static_cast<int>(width - x < rest ? width - x : rest);
    for (int32_t first = 0; first < w.lattice[0]; first += kChunk) {
      const int columns = w.lattice[0] - first < kChunk ? w.lattice[0] - first : kChunk;
      contract_row<Rank>(w, theta, bands, y, z, first, columns, sums);
      contract_columns<L, Rank>(w, bands, sums, first, columns, x, pixels, done, points);
    }
    done += pixels;
    x = 0;
    if (++y == height) {
      y = 0;
      ++z;
    }
  }
}

/// The points of a unit of an irregular lattice.
template <int Rank>
void lattice_points(const Warp& w, const float* theta, const CpuUnit& unit, Points* points) {
  const int pixels = static_cast<int>(unit.pixels);
  for (int d = 0; d < Rank; ++d) {
    for (int p = 0; p < pixels; ++p) points->at[d][p] = 0.0f;
  }
  for (int32_t t = 0; t < w.taps; ++t) {
    const int32_t* index = w.index + t * w.pixels + unit.first_pixel;
    const float* weight = w.basis + t * w.pixels + unit.first_pixel;
    for (int p = 0; p < pixels; ++p) {
      const int32_t at = index[p] < 0 ? 0 : index[p] < w.rows ? index[p] : w.rows - 1;
      for (int d = 0; d < Rank; ++d) points->at[d][p] += weight[p] * theta[d * int64_t{w.rows} + at];
    }
  }
}

/// The points of a unit's pixels, for the kinds that come from a lattice.
template <class L, int Rank>
void find_points(const Warp& w, const CpuUnit& unit, Points* points) {
  const float* theta = static_cast<const float*>(w.theta) + unit.sample * w.theta_stride;
  if (w.kind == STN_TENSOR_PRODUCT) {
    tensor_product_points<L, Rank>(w, theta, unit, points);
  } else {
    lattice_points<Rank>(w, theta, unit, points);
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_POINTS_HPP_
