/// \file lanes_avx512.hpp
/// \brief Sixteen lanes (AVX-512 F, BW, VL, DQ). Include only in files compiled for these instruction sets.
#ifndef STN_KERNELS_LANES_AVX512_HPP_
#define STN_KERNELS_LANES_AVX512_HPP_

#include <immintrin.h>

#include "kernels/lanes_loads.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {

struct f32x16 {
  __m512 v;
  f32x16() = default;
  STN_HD f32x16(__m512 value) : v(value) {}
  STN_HD explicit f32x16(float value) : v(_mm512_set1_ps(value)) {}
};

struct i32x16 {
  __m512i v;
  i32x16() = default;
  STN_HD i32x16(__m512i value) : v(value) {}
  STN_HD explicit i32x16(int32_t value) : v(_mm512_set1_epi32(value)) {}
};

struct mask16 {
  __mmask16 v;
};

STN_HD f32x16 operator+(f32x16 a, f32x16 b) { return _mm512_add_ps(a.v, b.v); }
STN_HD f32x16 operator-(f32x16 a, f32x16 b) { return _mm512_sub_ps(a.v, b.v); }
STN_HD f32x16 operator*(f32x16 a, f32x16 b) { return _mm512_mul_ps(a.v, b.v); }
STN_HD f32x16 operator/(f32x16 a, f32x16 b) { return _mm512_div_ps(a.v, b.v); }
STN_HD i32x16 operator+(i32x16 a, i32x16 b) { return _mm512_add_epi32(a.v, b.v); }
STN_HD i32x16 operator-(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a.v, b.v); }

STN_HD f32x16 vfma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
STN_HD f32x16 vfloor(f32x16 x) { return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
STN_HD f32x16 vround(f32x16 x) { return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
STN_HD f32x16 vabs(f32x16 x) { return _mm512_abs_ps(x.v); }
// The instructions return their second operand if the first is NaN, like the functions of `Scalar`.
STN_HD f32x16 vmax(f32x16 x, f32x16 low) { return _mm512_max_ps(x.v, low.v); }
STN_HD f32x16 vmin(f32x16 x, f32x16 high) { return _mm512_min_ps(x.v, high.v); }
STN_HD f32x16 vmax(f32x16 x, float low) { return vmax(x, f32x16(low)); }
STN_HD f32x16 vmin(f32x16 x, float high) { return vmin(x, f32x16(high)); }
STN_HD mask16 vfinite(f32x16 x) {
  return {_mm512_cmp_ps_mask(_mm512_abs_ps(x.v), _mm512_set1_ps(3.402823466e+38f), _CMP_LE_OQ)};
}
STN_HD mask16 vgreater(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
STN_HD mask16 vwithin(f32x16 x, float last) {
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GE_OQ);
  return {_mm512_mask_cmp_ps_mask(above, x.v, _mm512_set1_ps(last), _CMP_LT_OQ)};
}
STN_HD i32x16 vmax(i32x16 a, i32x16 b) { return _mm512_max_epi32(a.v, b.v); }
STN_HD i32x16 vmin(i32x16 a, i32x16 b) { return _mm512_min_epi32(a.v, b.v); }
STN_HD mask16 vequal(i32x16 a, i32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
STN_HD mask16 vnot_less(i32x16 a, int32_t b) { return {_mm512_cmpge_epi32_mask(a.v, _mm512_set1_epi32(b))}; }
STN_HD mask16 vinside(i32x16 i, int32_t size) { return {_mm512_cmplt_epu32_mask(i.v, _mm512_set1_epi32(size))}; }
STN_HD i32x16 vint(f32x16 x) { return _mm512_cvttps_epi32(x.v); }
STN_HD f32x16 vfloat(i32x16 i) { return _mm512_cvtepi32_ps(i.v); }
STN_HD f32x16 vselect(mask16 m, f32x16 a, f32x16 b) { return _mm512_mask_blend_ps(m.v, b.v, a.v); }
STN_HD i32x16 vselect(mask16 m, i32x16 a, i32x16 b) { return _mm512_mask_blend_epi32(m.v, b.v, a.v); }
STN_HD mask16 vand(mask16 a, mask16 b) { return {static_cast<__mmask16>(a.v & b.v)}; }
STN_HD mask16 vor(mask16 a, mask16 b) { return {static_cast<__mmask16>(a.v | b.v)}; }
STN_HD bool vall(mask16 m) { return m.v == 0xffff; }
STN_HD bool vany(mask16 m) { return m.v != 0; }
/// x modulo period, for x >= 0 and finite.
STN_HD f32x16 vmod(f32x16 x, float period) {
  const f32x16 p(period), quotient = vfloor(x / p);
  if (vany(vgreater(quotient, f32x16(4194304.0f)))) {  // beyond that the quotient is rounded
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, x.v);
    for (float& lane : lanes) lane = fmodf(lane, period);
    return _mm512_load_ps(lanes);
  }
  // Near a multiple of the period, the quotient may be one too large or too small.
  const f32x16 rest = _mm512_fnmadd_ps(quotient.v, p.v, x.v);
  const f32x16 low = vselect(vgreater(f32x16(0.0f), rest), rest + p, rest);
  return vselect(vgreater(p, low), low, low - p);
}

struct Avx512Lanes {
  using F = f32x16;
  using I = i32x16;
  using M = mask16;
  using Offset = i32x16;
  static constexpr int width = 16;
  /// Whether samples inside of the image are computed by cpu_quads.hpp.
  static constexpr bool quads = true;

  static STN_HD I iota() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static STN_HD __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
  static STN_HD F load(const float* from, int count) { return _mm512_maskz_loadu_ps(first(count), from); }
  /// A whole vector, at a multiple of its size.
  static STN_HD F load_aligned(const float* from) { return _mm512_load_ps(from); }
  static STN_HD void store_aligned(float* to, F value) { _mm512_store_ps(to, value.v); }
  static STN_HD void store_aligned(int32_t* to, I value) { _mm512_store_si512(to, value.v); }

  template <int Rank>
  static STN_HD Offset offset(I x, I y, I z, const Warp& w) {
    I at = _mm512_add_epi32(x.v, _mm512_mullo_epi32(y.v, _mm512_set1_epi32(static_cast<int32_t>(w.in_row))));
    if (Rank == 3) {
      at = at + I(_mm512_mullo_epi32(z.v, _mm512_set1_epi32(static_cast<int32_t>(w.in_plane))));
    }
    return at;
  }

  /// The values at offsets inside the image, 0 where `mask` is false.
  template <class T>
  static STN_HD F gather(const T* base, const Offset& at, M mask) {
    return _mm512_maskz_mov_ps(mask.v, values_at(base, lanes(at)));
  }

  /// Two neighbors with one load: eight bytes of fp32, four of the 16-bit types.
  static STN_HD void gather_pair(const float* base, const Offset& at, const Warp&, F* left, F* right) {
    const LaneIndices from = lanes(at);
    const __m512 low = join(load_4x64(base, from), load_4x64(base, from.from(4)));
    const __m512 high = join(load_4x64(base, from.from(8)), load_4x64(base, from.from(12)));
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    *left = _mm512_permutex2var_ps(low, even, high);
    *right = _mm512_permutex2var_ps(low, odd, high);
  }

  static STN_HD void gather_pair(const Half* base, const Offset& at, const Warp&, F* left, F* right) {
    const __m512i both = pairs_at(base, lanes(at));
    *left = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
    *right = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
  }

  static STN_HD void gather_pair(const BFloat* base, const Offset& at, const Warp&, F* left, F* right) {
    const __m512i both = pairs_at(base, lanes(at));
    *left = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *right = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }

  /// Both neighbors are always read, so the pair must be inside the image.
  template <class T>
  static STN_HD void gather_pair(const T* base, const Offset& at, const Warp& w, M left_mask, M right_mask, F* left,
                                 F* right) {
    gather_pair(base, at, w, left, right);
    *left = _mm512_maskz_mov_ps(left_mask.v, left->v);
    *right = _mm512_maskz_mov_ps(right_mask.v, right->v);
  }

  static STN_HD void store(float* to, F value, int count) { _mm512_mask_storeu_ps(to, first(count), value.v); }
  static STN_HD void store(Half* to, F value, int count) {
    _mm256_mask_storeu_epi16(to, first(count), _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static STN_HD void store(BFloat* to, F value, int count) {
    const __m512i bits = _mm512_castps_si512(value.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(to, first(count), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  /// `count` consecutive values, for channels-last images.
  static STN_HD F load_values(const float* from, int count) { return load(from, count); }
  static STN_HD F load_values(const Half* from, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from));
  }
  static STN_HD F load_values(const BFloat* from, int count) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from)), 16));
  }

  /// Transposes sixteen vectors.
  static STN_HD void transpose(F* v) {
    __m512 pairs[16], quads[16];
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
      pairs[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int half = 0; half < 2; ++half) {
        const __m512d a = _mm512_castps_pd(pairs[i + half]), b = _mm512_castps_pd(pairs[i + 2 + half]);
        quads[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        quads[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
    // quads[4 r + c] holds columns c, 4 + c, 8 + c and 12 + c of rows 4 r to 4 r + 3, in 128 bits each.
    for (int c = 0; c < 4; ++c) {
      const __m512 low_even = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);
      const __m512 low_odd = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);
      const __m512 high_even = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
      const __m512 high_odd = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
      v[c] = _mm512_shuffle_f32x4(low_even, high_even, 0x88);
      v[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
      v[8 + c] = _mm512_shuffle_f32x4(low_even, high_even, 0xdd);
      v[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
  }

  /// Rank vectors of consecutive values x y(z) x y(z) ... to one vector per coordinate.
  template <int Rank>
  static STN_HD void deinterleave(F* v) {
    if (Rank == 2) {
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      const __m512 x = _mm512_permutex2var_ps(v[0].v, even, v[1].v);
      v[1] = _mm512_permutex2var_ps(v[0].v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), v[1].v);
      v[0] = x;
      return;
    }
    // The elements of one coordinate are at different positions in the three vectors: blend, then put in order.
    const __mmask16 zero = 0x9249, one = 0x2492, two = 0x4924;  // positions 0, 3, ...; 1, 4, ...; 2, 5, ...
    const __m512 a = v[0].v, b = v[1].v, c = v[2].v;
    const __m512i order_x = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13);
    const __m512i order_y = _mm512_setr_epi32(1, 4, 7, 10, 13, 0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14);
    const __m512i order_z = _mm512_setr_epi32(2, 5, 8, 11, 14, 1, 4, 7, 10, 13, 0, 3, 6, 9, 12, 15);
    v[0] = _mm512_permutexvar_ps(order_x, _mm512_mask_blend_ps(one, _mm512_mask_blend_ps(two, a, b), c));
    v[1] = _mm512_permutexvar_ps(order_y, _mm512_mask_blend_ps(two, _mm512_mask_blend_ps(zero, a, b), c));
    v[2] = _mm512_permutexvar_ps(order_z, _mm512_mask_blend_ps(zero, _mm512_mask_blend_ps(one, a, b), c));
  }

 private:
  static STN_HD LaneIndices lanes(const I& at) { return LaneIndices(&at.v); }
  static STN_HD __m512 join(__m256 low, __m256 high) {
    return _mm512_castpd_ps(
        _mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high), 1));
  }
  static STN_HD __m512 values_at(const float* base, LaneIndices at) {
    return join(_mm256_castsi256_ps(load_8x32(base, at)), _mm256_castsi256_ps(load_8x32(base, at.from(8))));
  }
  template <class T>
  static STN_HD __m512 values_at(const T* base, LaneIndices at) {
    const __m256i bits =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_8x16(base, at)), load_8x16(base, at.from(8)), 1);
    return widen(base, bits);
  }
  static STN_HD __m512 widen(const Half*, __m256i bits) { return _mm512_cvtph_ps(bits); }
  static STN_HD __m512 widen(const BFloat*, __m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  template <class T>
  static STN_HD __m512i pairs_at(const T* base, LaneIndices at) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_8x32(base, at)), load_8x32(base, at.from(8)), 1);
  }
};

}  // namespace stn

#endif  // STN_KERNELS_LANES_AVX512_HPP_
