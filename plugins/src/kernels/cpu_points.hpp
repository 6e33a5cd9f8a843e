/// \file cpu_points.hpp
/// \brief Sampling points from a lattice of control points, for the pixels of one unit.
///
/// A tensor product is contracted along z and y once per row of pixels, then along x for each vector of pixels. The
/// matrices of coarse grids and splines are mostly zero: only what is not is read.
#ifndef STN_KERNELS_CPU_POINTS_HPP_
#define STN_KERNELS_CPU_POINTS_HPP_

#include "kernels/cpu.hpp"
#include "kernels/warp.hpp"

namespace stn {

// Internal linkage: this code is compiled once per instruction set, and the linker must not merge the copies.
namespace {

/// Lattice columns that are contracted at a time.
constexpr int kChunk = 256;
/// Lattice rows that are kept, and the longest row of pixels for which they are.
constexpr int kKeptRows = 4, kKeptPixels = 1024;
/// From one array to the next, in elements: not a multiple of 4096 bytes, which would evict each other from the L1
/// cache.
constexpr int kPointsStride = kTilePixels + 32, kKeptStride = kKeptPixels + 32;

/// The sampling points of a unit's pixels, one array per coordinate, and what the next unit may need again.
struct Points {
  alignas(64) float at[3][kPointsStride];
  alignas(64) float kept[kKeptRows][3][kKeptStride];  ///< lattice rows, contracted along x (and z)
  int64_t kept_row[kKeptRows] = {-1, -1, -1, -1};     ///< which: (sample, z, lattice row)
};

/// Lattice points [first, last).
struct Range {
  int32_t first, last;
};

/// Where a row of `size` weights is not zero.
template <class L>
Range nonzeros(const float* weights, int32_t size) {
  Range range{0, size};
  for (; range.first < size; range.first += L::width) {
    const int count = size - range.first < L::width ? size - range.first : L::width;
    const typename L::F part = L::load(weights + range.first, count);
    if (vany(vgreater(vabs(part), typename L::F(0.0f))) || !vall(vfinite(part))) break;
  }
  if (range.first >= size) return {0, 0};
  while (range.first < size && weights[range.first] == 0.0f) ++range.first;
  while (range.last > range.first && weights[range.last - 1] == 0.0f) --range.last;
  return range;
}

/// Lattice rows `row` times `weights`, and planes contracted: `sums` [Rank][kChunk], for `columns` lattice columns from
/// `first` on.
template <class L, int Rank>
void contract_rows(const Warp& w, const float* theta, Range row, const float* weights, int32_t z, int32_t first,
                   int columns, float (*sums)[kChunk]) {
  using F = typename L::F;
  const float* planes = Rank == 3 ? w.lattice_axes[2] + int64_t{z} * w.lattice[2] : nullptr;
  const Range plane = Rank == 3 ? nonzeros<L>(planes, w.lattice[2]) : Range{0, 1};
  const int64_t slice = int64_t{w.lattice[0]} * w.lattice[1];
  for (int v = 0; v < columns; v += L::width) {
    const int count = columns - v < L::width ? columns - v : L::width;
    F sum[3] = {F(0.0f), F(0.0f), F(0.0f)};
    for (int32_t k = plane.first; k < plane.last; ++k) {
      for (int32_t i = row.first; i < row.last; ++i) {
        const float of_row = weights[i - row.first];
        const F weight(Rank == 3 ? planes[k] * of_row : of_row);
        const float* from = theta + k * slice + int64_t{i} * w.lattice[0] + first + v;
        for (int d = 0; d < Rank; ++d) sum[d] = vfma(weight, L::load(from + d * int64_t{w.rows}, count), sum[d]);
      }
    }
    for (int d = 0; d < Rank; ++d) L::store(sums[d] + v, sum[d], count);
  }
}

/// The product of `sums` and the matrix of x, for `pixels` pixels of a row from column `x` on; added to `to`, whose
/// coordinates are `stride` apart, unless `first` is 0.
template <class L, int Rank>
void contract_columns(const Warp& w, const float (*sums)[kChunk], int32_t first, int columns, int32_t x, int pixels,
                      float* to, int64_t stride) {
  using F = typename L::F;
  const Band* band = w.bands + x / kBandPixels;
  int place = x % kBandPixels;  // within the band
  for (int done = 0; done < pixels; ++band, place = 0) {
    const int32_t begin = band->first > first ? band->first : first;
    const int32_t end = band->last < first + columns ? band->last : first + columns;
    const int rest = pixels - done < kBandPixels - place ? pixels - done : kBandPixels - place;
    const float* column = band->weights + int64_t{begin - band->first} * kBandPixels + place;
    for (int v = 0; v < rest; v += L::width) {
      const int count = rest - v < L::width ? rest - v : L::width;
      float* target = to + done + v;
      F sum[3] = {F(0.0f), F(0.0f), F(0.0f)};
      if (first != 0) {
        for (int d = 0; d < Rank; ++d) sum[d] = L::load(target + d * stride, count);
      }
      const float* weights = column + v;
      for (int32_t j = begin - first; j < end - first; ++j, weights += kBandPixels) {
        const F weight = L::load(weights, count);
        for (int d = 0; d < Rank; ++d) sum[d] = vfma(F(sums[d][j]), weight, sum[d]);
      }
      for (int d = 0; d < Rank; ++d) L::store(target + d * stride, sum[d], count);
    }
    done += rest;
  }
}

/// Lattice rows `row` times `weights`, contracted along every axis, for `pixels` pixels of a row from column `x` on.
template <class L, int Rank>
void contract(const Warp& w, const float* theta, Range row, const float* weights, int32_t z, int32_t x, int pixels,
              float* to, int64_t stride) {
  float sums[3][kChunk];
  for (int32_t first = 0; first < w.lattice[0]; first += kChunk) {
    const int columns = w.lattice[0] - first < kChunk ? w.lattice[0] - first : kChunk;
    contract_rows<L, Rank>(w, theta, row, weights, z, first, columns, sums);
    contract_columns<L, Rank>(w, sums, first, columns, x, pixels, to, stride);
  }
}

/// `Count` kept rows times their weights.
template <class L, int Rank, int Count>
void add_rows(const float (*const* kept)[kKeptStride], const float* weights, int pixels, float* to, int64_t stride) {
  using F = typename L::F;
  for (int v = 0; v < pixels; v += L::width) {
    const int count = pixels - v < L::width ? pixels - v : L::width;
    for (int d = 0; d < Rank; ++d) {
      F sum(0.0f);
      for (int i = 0; i < Count; ++i) sum = vfma(F(weights[i]), L::load(kept[i][d] + v, count), sum);
      L::store(to + d * stride + v, sum, count);
    }
  }
}

/// The points of row `y`, from at most kKeptRows lattice rows, which neighboring rows share.
template <class L, int Rank>
void points_of_row(const Warp& w, const float* theta, Range row, const float* weights, int32_t z, int64_t slice,
                   Points* points, float* to) {
  const float one = 1.0f;
  const int pixels = w.out_size[0];
  const float (*kept[kKeptRows])[kKeptStride];
  for (int32_t i = row.first; i < row.last; ++i) {
    const int slot = i % kKeptRows;
    const int64_t name = slice * w.lattice[1] + i;
    if (points->kept_row[slot] != name) {
      contract<L, Rank>(w, theta, {i, i + 1}, &one, z, 0, pixels, points->kept[slot][0], kKeptStride);
      points->kept_row[slot] = name;
    }
    kept[i - row.first] = points->kept[slot];
  }
  static_assert(kKeptRows == 4, "one case per number of rows");
  switch (row.last - row.first) {
    case 1:
      return add_rows<L, Rank, 1>(kept, weights, pixels, to, kPointsStride);
    case 2:
      return add_rows<L, Rank, 2>(kept, weights, pixels, to, kPointsStride);
    case 3:
      return add_rows<L, Rank, 3>(kept, weights, pixels, to, kPointsStride);
    default:
      return add_rows<L, Rank, 4>(kept, weights, pixels, to, kPointsStride);
  }
}

/// The points of a unit of a tensor product, row by row.
template <class L, int Rank>
void tensor_product_points(const Warp& w, const float* theta, const CpuUnit& unit, Points* points) {
  const int64_t width = w.out_size[0], height = w.out_size[1];
  int32_t x = static_cast<int32_t>(unit.first_pixel % width);
  int32_t y = static_cast<int32_t>(unit.first_pixel / width % height);
  int32_t z = static_cast<int32_t>(unit.first_pixel / width / height);
  const bool shared = width <= kKeptPixels && height >= 2 * w.lattice[1];
  for (int64_t done = 0; done < unit.pixels;) {
    const int64_t rest = unit.pixels - done;
    const int pixels = static_cast<int>(width - x < rest ? width - x : rest);
    const float* weights = w.lattice_axes[1] + int64_t{y} * w.lattice[1];
    const Range row = nonzeros<L>(weights, w.lattice[1]);
    const int32_t length = row.last - row.first;
    if (shared && pixels == width && length > 0 && length <= kKeptRows) {
      const int64_t slice = unit.sample * w.out_size[2] + z;
      points_of_row<L, Rank>(w, theta, row, weights + row.first, z, slice, points, points->at[0] + done);
    } else {
      contract<L, Rank>(w, theta, row, weights + row.first, z, x, pixels, points->at[0] + done, kPointsStride);
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
