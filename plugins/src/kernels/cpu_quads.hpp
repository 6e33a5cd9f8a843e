/// \file cpu_quads.hpp
/// \brief Bilinear and trilinear samples inside of the image, four at a time and for several channels.
///
/// A sample reads pairs of neighbors, each with one load. For wide vectors, joining these loads takes longer than the
/// loads themselves, and every channel needs the offsets in scalar registers again. So the offsets of four samples are
/// kept there for some channels, and their pairs are joined in 128 bits.
#ifndef STN_KERNELS_CPU_QUADS_HPP_
#define STN_KERNELS_CPU_QUADS_HPP_

#include <immintrin.h>

#include "kernels/lanes_loads.hpp"
#include "kernels/numbers.hpp"

namespace stn {
namespace {

/// The left and right values of four pairs of neighbors at `base + at[i]`.
STN_HD void load_pairs(const float* base, const int64_t* at, __m128* left, __m128* right) {
  const auto pairs = [base](int64_t first, int64_t second) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + first));
    return _mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(base + second));
  };
  const __m128 low = pairs(at[0], at[1]), high = pairs(at[2], at[3]);
  *left = _mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  *right = _mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
}

template <class T>
STN_HD __m128i load_narrow_pairs(const T* base, const int64_t* at) {
  const __m128i low = _mm_insert_epi32(_mm_cvtsi32_si128(load_32(base + at[0])), load_32(base + at[1]), 1);
  const __m128i high = _mm_insert_epi32(_mm_cvtsi32_si128(load_32(base + at[2])), load_32(base + at[3]), 1);
  return _mm_unpacklo_epi64(low, high);
}

STN_HD void load_pairs(const Half* base, const int64_t* at, __m128* left, __m128* right) {
  // The low 16 bits of each pair, then the high ones.
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m128i values = _mm_shuffle_epi8(load_narrow_pairs(base, at), order);
  *left = _mm_cvtph_ps(values);
  *right = _mm_cvtph_ps(_mm_srli_si128(values, 8));
}

STN_HD void load_pairs(const BFloat* base, const int64_t* at, __m128* left, __m128* right) {
  const __m128i values = load_narrow_pairs(base, at);
  *left = _mm_castsi128_ps(_mm_slli_epi32(values, 16));
  *right = _mm_castsi128_ps(_mm_and_si128(values, _mm_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

STN_HD void store_quad(float* to, __m128 values) { _mm_storeu_ps(to, values); }
STN_HD void store_quad(Half* to, __m128 values) {
  const __m128i bits = _mm_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bits);
}
STN_HD void store_quad(BFloat* to, __m128 values) {
  const __m128i bits = _mm_castps_si128(values);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
  const __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
  const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(values, values));
  const __m128i high = _mm_srli_epi32(_mm_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(high, high));
}

/// Four lanes of a vector in memory, from `first` on.
template <class F>
STN_HD __m128 quad_of(const F& vector, int first) {
  return _mm_loadu_ps(reinterpret_cast<const float*>(&vector) + first);
}

/// Samples a whole vector in `channels` channels. Taps is a Linear whose pixels are all inside of the image.
template <class L, class Taps, class T>
STN_HD void apply_quads(const Warp& w, const Taps& taps, const T* image, int channels, T* to) {
  int64_t further[Taps::kRows];  // from a sample's first pixel to its other rows
  for (int r = 0; r < Taps::kRows; ++r) further[r] = r % 2 * w.in_row + r / 2 * w.in_plane;
  for (int q = 0; q < L::width; q += 4) {
    const LaneIndices lanes(&taps.first[0], q);
    const int64_t at[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
    const __m128 left = quad_of(taps.left, q), right = quad_of(taps.right, q);
    __m128 row[Taps::kRows];
    for (int r = 0; r < Taps::kRows; ++r) row[r] = quad_of(taps.row[r], q);
    const T* channel = image;
    T* result = to + q;
    for (int c = 0; c < channels; ++c, channel += w.in_channel_stride, result += w.out_channel_stride) {
      __m128 sum = _mm_setzero_ps();
      for (int r = 0; r < Taps::kRows; ++r) {
        __m128 a, b;
        load_pairs(channel + further[r], at, &a, &b);
        const __m128 line = _mm_fmadd_ps(b, right, _mm_mul_ps(a, left));
        sum = r == 0 ? _mm_mul_ps(line, row[r]) : _mm_fmadd_ps(line, row[r], sum);
      }
      store_quad(result, sum);
    }
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_QUADS_HPP_
