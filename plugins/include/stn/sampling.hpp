/// \file sampling.hpp
/// \brief The sampling math, shared by the device, scalar and SIMD kernels.
///
/// Every function is a template over a lane type `L` with `L::F` (floats), `L::I` (32-bit integers), `L::M` (masks) and
/// `L::width`. `Scalar` below is the lane type of width one; the CPU kernels define wider ones with the same free
/// functions. The result is ONNX GridSample (bilinear, nearest, bicubic with A = -0.75; zeros, border, reflection; both
/// values of align_corners), with one addition: a coordinate that is not finite samples outside of the image.
#ifndef STN_SAMPLING_HPP_
#define STN_SAMPLING_HPP_

#include <math.h>
#include <stdint.h>

#include "stn/stn.h"

#if defined(STN_HD)
// Defined by the tests.
#elif defined(__CUDACC__)
#define STN_HD __host__ __device__ __forceinline__
#else
// Forced inlining: the linker could otherwise merge out-of-line copies compiled for different instruction sets.
#define STN_HD inline __attribute__((always_inline))
#endif

namespace stn {

// ------------------------------------------------------------------------------------------------ lanes of width one

/// The lane type of width one.
struct Scalar {
  using F = float;
  using I = int32_t;
  using M = bool;
  static constexpr int width = 1;
};

STN_HD float vfma(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(STN_FMA)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
STN_HD float vfloor(float x) { return floorf(x); }
STN_HD float vround(float x) { return rintf(x); }  // half to even
STN_HD float vabs(float x) { return fabsf(x); }
/// The maximum; `low` if x is NaN.
STN_HD float vmax(float x, float low) { return x > low ? x : low; }
/// The minimum; `high` if x is NaN.
STN_HD float vmin(float x, float high) { return x < high ? x : high; }
STN_HD float vmod(float x, float period) { return fmodf(x, period); }
STN_HD bool vfinite(float x) { return fabsf(x) <= 3.402823466e+38f; }
STN_HD bool vgreater(float a, float b) { return a > b; }
/// 0 <= x < last; false for NaN.
STN_HD bool vwithin(float x, float last) { return x >= 0.0f && x < last; }
STN_HD int32_t vmax(int32_t a, int32_t b) { return a > b ? a : b; }
STN_HD int32_t vmin(int32_t a, int32_t b) { return a < b ? a : b; }
STN_HD bool vequal(int32_t a, int32_t b) { return a == b; }
STN_HD bool vnot_less(int32_t a, int32_t b) { return a >= b; }
/// 0 <= i < size.
STN_HD bool vinside(int32_t i, int32_t size) { return static_cast<uint32_t>(i) < static_cast<uint32_t>(size); }
STN_HD int32_t vint(float x) { return static_cast<int32_t>(x); }
STN_HD float vfloat(int32_t i) { return static_cast<float>(i); }
STN_HD float vselect(bool m, float a, float b) { return m ? a : b; }
STN_HD int32_t vselect(bool m, int32_t a, int32_t b) { return m ? a : b; }
STN_HD bool vand(bool a, bool b) { return a && b; }
STN_HD bool vor(bool a, bool b) { return a || b; }
STN_HD bool vall(bool m) { return m; }
STN_HD bool vany(bool m) { return m; }

// -------------------------------------------------------------------------------------------------------- one axis

constexpr float kNotANumber = __builtin_nanf("");

/// One axis of the input image: constants to convert normalized to pixel coordinates, and to reflect them.
struct Axis {
  int32_t size;     ///< pixels
  float half;       ///< pixel = x * half + center
  float center;     ///< the pixel coordinate of x = 0
  float last;       ///< size - 1
  float fold_low;   ///< the lower reflection boundary: 0, or -0.5
  float fold_span;  ///< the distance between the reflection boundaries: size - 1, or size
};

/// The constants of an axis of `size` pixels.
STN_HD Axis make_axis(int32_t size, bool align_corners) {
  Axis a;
  const float last = static_cast<float>(size - 1);
  a.size = size;
  a.half = align_corners ? 0.5f * last : 0.5f * static_cast<float>(size);
  a.center = 0.5f * last;
  a.last = last;
  a.fold_low = align_corners ? 0.0f : -0.5f;
  a.fold_span = align_corners ? last : static_cast<float>(size);
  return a;
}

/// Converts normalized to pixel coordinates; 0 is the center of the first pixel. A coordinate that is not finite gives
/// NaN, which the functions below place outside of the image. (A huge finite coordinate may overflow to infinity, and
/// keeps its sign.)
template <class F>
STN_HD F unnormalize(F x, const Axis& a) {
  return vselect(vfinite(x), vfma(x, F(a.half), F(a.center)), F(kNotANumber));
}

/// Clamps or reflects coordinates into the image, for border and reflection. NaN becomes 0.
template <class F>
STN_HD F pad_inside(F x, const Axis& a, int padding) {
  if (padding == STN_REFLECTION) {
    if (a.fold_span == 0.0f) return F(0.0f);
    const float period = 2.0f * a.fold_span;
    const F distance = vmod(vabs(x - F(a.fold_low)), period);
    x = vselect(vgreater(distance, F(a.fold_span)), F(period) - distance, distance) + F(a.fold_low);
  }
  return vmin(vmax(x, F(0.0f)), F(a.last));
}

/// Clamps coordinates to `reach` pixels around the image, so that their integer part fits in 32 bits. NaN becomes
/// `-reach`.
template <class F>
STN_HD F keep_near(F x, const Axis& a, float reach) {
  return vmin(vmax(x, F(-reach)), F(a.last + reach));
}

/// The nearest pixel of a coordinate (half to even); valid if it is in the image.
template <class L>
struct NearestTap {
  typename L::I index;
  typename L::M valid;
};

template <class L>
STN_HD NearestTap<L> nearest_tap(typename L::F x, const Axis& a, int padding) {
  x = padding == STN_ZEROS ? keep_near(x, a, 2.0f) : pad_inside(x, a, padding);
  NearestTap<L> tap;
  tap.index = vint(vround(x));
  tap.valid = vinside(tap.index, a.size);
  return tap;
}

/// The two pixels around a coordinate. The index of an invalid pixel is outside of the image and must not be read.
template <class L>
struct LinearTap {
  typename L::I low;         ///< the left pixel; the right one is low + 1
  typename L::F weight_low;  ///< 1 - weight_high
  typename L::F weight_high;
  typename L::M valid_low;
  typename L::M valid_high;
};

template <class L>
STN_HD LinearTap<L> linear_tap(typename L::F x, const Axis& a, int padding) {
  using F = typename L::F;
  x = padding == STN_ZEROS ? keep_near(x, a, 2.0f) : pad_inside(x, a, padding);
  const F floor = vfloor(x);
  LinearTap<L> tap;
  tap.low = vint(floor);
  tap.weight_high = x - floor;
  tap.weight_low = F(1.0f) - tap.weight_high;
  tap.valid_low = vinside(tap.low, a.size);
  tap.valid_high = vinside(tap.low + typename L::I(1), a.size);
  return tap;
}

/// The four pixels around a coordinate, each padded separately.
template <class L>
struct CubicTap {
  typename L::I index[4];
  typename L::F weight[4];
  typename L::M valid[4];
};

/// Keys' cubic convolution kernel with A = -0.75 at distances t+1, t, 1-t, 2-t.
template <class F>
STN_HD void cubic_weights(F t, F* weight) {
  const F a(-0.75f), u = F(1.0f) - t;
  const F t1 = t + F(1.0f), u1 = u + F(1.0f);
  const F far0 = a * F(-5.0f), far1 = a * F(8.0f), far2 = a * F(-4.0f);
  const F near0 = a + F(2.0f), near1 = F(0.0f) - (a + F(3.0f));
  weight[0] = vfma(vfma(vfma(a, t1, far0), t1, far1), t1, far2);
  weight[1] = vfma(vfma(near0, t, near1) * t, t, F(1.0f));
  weight[2] = vfma(vfma(near0, u, near1) * u, u, F(1.0f));
  weight[3] = vfma(vfma(vfma(a, u1, far0), u1, far1), u1, far2);
}

template <class L>
STN_HD CubicTap<L> cubic_tap(typename L::F x, const Axis& a, int padding) {
  using F = typename L::F;
  using I = typename L::I;
  CubicTap<L> tap;
  // Beyond `reach`, with zeros every tap is outside and with border every tap is clamped to the same pixel.
  x = padding == STN_REFLECTION ? vselect(vfinite(x), x, F(0.0f)) : keep_near(x, a, 4.0f);
  const F floor = vfloor(x);
  cubic_weights(x - floor, tap.weight);
  for (int i = 0; i < 4; ++i) {
    const F at = floor + F(static_cast<float>(i - 1));
    tap.index[i] = padding == STN_ZEROS ? vint(at) : vint(vround(pad_inside(at, a, padding)));
    tap.valid[i] = vinside(tap.index[i], a.size);
    tap.index[i] = vmin(vmax(tap.index[i], I(0)), I(a.size - 1));
  }
  return tap;
}

// ------------------------------------------------------------------------------------------------- sampling grids

/// One normalized coordinate per axis: x, y(, z).
template <class L>
struct Point {
  typename L::F at[3];
};

/// The normalized center of pixel i on an axis of `size` pixels: (2 i + 1) / size - 1.
template <class L>
STN_HD typename L::F pixel_center(typename L::I i, int32_t size, float inverse_size) {
  using F = typename L::F;
  return vfloat(i + i + typename L::I(1 - size)) * F(inverse_size);
}

/// One row of theta times the canonical basis x, y(, z), 1.
template <class L, int Rank>
STN_HD typename L::F affine_row(const float* row, const Point<L>& center) {
  using F = typename L::F;
  F sum(row[Rank]);
  for (int d = Rank - 1; d >= 0; --d) sum = vfma(F(row[d]), center.at[d], sum);
  return sum;
}

/// The sampling point of an affine transformation at a pixel center; theta is [Rank, Rank + 1].
template <class L, int Rank>
STN_HD Point<L> affine_point(const float* theta, const Point<L>& center) {
  Point<L> point = center;
  for (int d = 0; d < Rank; ++d) point.at[d] = affine_row<L, Rank>(theta + d * (Rank + 1), center);
  return point;
}

/// The perspective division of `Rank` rows by the row after them, in IEEE arithmetic: w = 0 gives inf or NaN, which
/// sample outside of the image. w is at least `w_min`; -inf does not bound it, and NaN stays NaN. `offset` is added
/// after.
template <class L, int Rank>
STN_HD Point<L> divide(const typename L::F* sums, float w_min, const float* offset) {
  using F = typename L::F;
  const F w = vmax(F(w_min), sums[Rank]);  // the second operand if one is NaN
  Point<L> point{{F(0.0f), F(0.0f), F(0.0f)}};
  for (int d = 0; d < Rank; ++d) point.at[d] = sums[d] / w + F(offset[d]);
  return point;
}

/// The same without a bound and an offset.
template <class L, int Rank>
STN_HD Point<L> divide(const typename L::F* sums) {
  using F = typename L::F;
  Point<L> point{{F(0.0f), F(0.0f), F(0.0f)}};
  for (int d = 0; d < Rank; ++d) point.at[d] = sums[d] / sums[Rank];
  return point;
}

/// The rows of a projective theta [Rank + 1, Rank + 1] times a pixel center: x, y(, z) and w.
template <class L, int Rank>
STN_HD void projective_rows(const float* theta, const Point<L>& center, typename L::F* sums) {
  for (int d = 0; d <= Rank; ++d) sums[d] = affine_row<L, Rank>(theta + d * (Rank + 1), center);
}

/// The sampling point of a projective transformation at a pixel center.
template <class L, int Rank>
STN_HD Point<L> projective_point(const float* theta, const Point<L>& center, float w_min, const float* offset) {
  typename L::F sums[Rank + 1];
  projective_rows<L, Rank>(theta, center, sums);
  return divide<L, Rank>(sums, w_min, offset);
}

}  // namespace stn

#endif  // STN_SAMPLING_HPP_
