/// \file lanes_avx2.hpp
/// \brief Eight lanes (AVX2, FMA, F16C). Include only in files compiled for these instruction sets.
#ifndef STN_KERNELS_LANES_AVX2_HPP_
#define STN_KERNELS_LANES_AVX2_HPP_

#include <immintrin.h>

#include "kernels/lanes_loads.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {

struct f32x8 {
  __m256 v;
  f32x8() = default;
  STN_HD f32x8(__m256 value) : v(value) {}
  STN_HD explicit f32x8(float value) : v(_mm256_set1_ps(value)) {}
};

struct i32x8 {
  __m256i v;
  i32x8() = default;
  STN_HD i32x8(__m256i value) : v(value) {}
  STN_HD explicit i32x8(int32_t value) : v(_mm256_set1_epi32(value)) {}
};

/// A mask: all bits of a lane are set, or none.
struct mask8 {
  __m256i v;
};

STN_HD f32x8 operator+(f32x8 a, f32x8 b) { return _mm256_add_ps(a.v, b.v); }
STN_HD f32x8 operator-(f32x8 a, f32x8 b) { return _mm256_sub_ps(a.v, b.v); }
STN_HD f32x8 operator*(f32x8 a, f32x8 b) { return _mm256_mul_ps(a.v, b.v); }
STN_HD f32x8 operator/(f32x8 a, f32x8 b) { return _mm256_div_ps(a.v, b.v); }
STN_HD i32x8 operator+(i32x8 a, i32x8 b) { return _mm256_add_epi32(a.v, b.v); }
STN_HD i32x8 operator-(i32x8 a, i32x8 b) { return _mm256_sub_epi32(a.v, b.v); }

STN_HD f32x8 vfma(f32x8 a, f32x8 b, f32x8 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
STN_HD f32x8 vfloor(f32x8 x) { return _mm256_floor_ps(x.v); }
STN_HD f32x8 vround(f32x8 x) { return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
STN_HD f32x8 vabs(f32x8 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v); }
// The instructions return their second operand if the first is NaN, like the functions of `Scalar`.
STN_HD f32x8 vmax(f32x8 x, f32x8 low) { return _mm256_max_ps(x.v, low.v); }
STN_HD f32x8 vmin(f32x8 x, f32x8 high) { return _mm256_min_ps(x.v, high.v); }
STN_HD f32x8 vmax(f32x8 x, float low) { return vmax(x, f32x8(low)); }
STN_HD f32x8 vmin(f32x8 x, float high) { return vmin(x, f32x8(high)); }
STN_HD mask8 vgreater(f32x8 a, f32x8 b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))}; }
STN_HD mask8 vfinite(f32x8 x) {
  return {_mm256_castps_si256(_mm256_cmp_ps(vabs(x).v, _mm256_set1_ps(3.402823466e+38f), _CMP_LE_OQ))};
}
STN_HD mask8 vwithin(f32x8 x, float last) {
  const __m256 above = _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GE_OQ);
  return {_mm256_castps_si256(_mm256_and_ps(above, _mm256_cmp_ps(x.v, _mm256_set1_ps(last), _CMP_LT_OQ)))};
}
STN_HD i32x8 vmax(i32x8 a, i32x8 b) { return _mm256_max_epi32(a.v, b.v); }
STN_HD i32x8 vmin(i32x8 a, i32x8 b) { return _mm256_min_epi32(a.v, b.v); }
STN_HD mask8 vequal(i32x8 a, i32x8 b) { return {_mm256_cmpeq_epi32(a.v, b.v)}; }
STN_HD mask8 vnot_less(i32x8 a, int32_t b) { return {_mm256_cmpgt_epi32(a.v, _mm256_set1_epi32(b - 1))}; }
STN_HD mask8 vinside(i32x8 i, int32_t size) {
  return {_mm256_andnot_si256(_mm256_srai_epi32(i.v, 31), _mm256_cmpgt_epi32(_mm256_set1_epi32(size), i.v))};
}
STN_HD i32x8 vint(f32x8 x) { return _mm256_cvttps_epi32(x.v); }
STN_HD f32x8 vfloat(i32x8 i) { return _mm256_cvtepi32_ps(i.v); }
STN_HD f32x8 vselect(mask8 m, f32x8 a, f32x8 b) { return _mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(m.v)); }
STN_HD i32x8 vselect(mask8 m, i32x8 a, i32x8 b) { return _mm256_blendv_epi8(b.v, a.v, m.v); }
STN_HD mask8 vand(mask8 a, mask8 b) { return {_mm256_and_si256(a.v, b.v)}; }
STN_HD mask8 vor(mask8 a, mask8 b) { return {_mm256_or_si256(a.v, b.v)}; }
STN_HD bool vall(mask8 m) { return _mm256_movemask_ps(_mm256_castsi256_ps(m.v)) == 0xff; }
STN_HD bool vany(mask8 m) { return _mm256_movemask_ps(_mm256_castsi256_ps(m.v)) != 0; }
/// x modulo period, for x >= 0 and finite.
STN_HD f32x8 vmod(f32x8 x, float period) {
  const f32x8 p(period), quotient = vfloor(x / p);
  if (vany(vgreater(quotient, f32x8(4194304.0f)))) {  // beyond that the quotient is rounded
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x.v);
    for (float& lane : lanes) lane = fmodf(lane, period);
    return _mm256_load_ps(lanes);
  }
  // Near a multiple of the period, the quotient may be one too large or too small.
  const f32x8 rest = _mm256_fnmadd_ps(quotient.v, p.v, x.v);
  const f32x8 low = vselect(vgreater(f32x8(0.0f), rest), rest + p, rest);
  return vselect(vgreater(p, low), low, low - p);
}

struct Avx2Lanes {
  using F = f32x8;
  using I = i32x8;
  using M = mask8;
  using Offset = i32x8;
  static constexpr int width = 8;
  /// Whether samples inside of the image are computed by cpu_quads.hpp.
  static constexpr bool quads = true;

  static STN_HD I iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static STN_HD __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static STN_HD F load(const float* from, int count) {
    return count == 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(count));
  }
  /// A whole vector, at a multiple of its size.
  static STN_HD F load_aligned(const float* from) { return _mm256_load_ps(from); }
  static STN_HD void store_aligned(float* to, F value) { _mm256_store_ps(to, value.v); }
  static STN_HD void store_aligned(int32_t* to, I value) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), value.v);
  }

  template <int Rank>
  static STN_HD Offset offset(I x, I y, I z, const Warp& w) {
    I at = _mm256_add_epi32(x.v, _mm256_mullo_epi32(y.v, _mm256_set1_epi32(static_cast<int32_t>(w.in_row))));
    if (Rank == 3) {
      at = at + I(_mm256_mullo_epi32(z.v, _mm256_set1_epi32(static_cast<int32_t>(w.in_plane))));
    }
    return at;
  }

  /// The values at offsets inside the image, 0 where `mask` is false.
  template <class T>
  static STN_HD F gather(const T* base, const Offset& at, M mask) {
    return _mm256_and_ps(values_at(base, lanes(at)), _mm256_castsi256_ps(mask.v));
  }

  /// Two neighbors with one load: eight bytes of fp32, four of the 16-bit types.
  static STN_HD void gather_pair(const float* base, const Offset& at, const Warp&, F* left, F* right) {
    // Loaded as pixels 0 1 4 5 and 2 3 6 7, so that the shuffle within 128 bits puts them in order.
    const LaneIndices from = lanes(at);
    const __m256 low =
        _mm256_insertf128_ps(_mm256_castps128_ps256(load_2x64(base, from)), load_2x64(base, from.from(4)), 1);
    const __m256 high =
        _mm256_insertf128_ps(_mm256_castps128_ps256(load_2x64(base, from.from(2))), load_2x64(base, from.from(6)), 1);
    *left = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
    *right = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
  }

  static STN_HD void gather_pair(const Half* base, const Offset& at, const Warp&, F* left, F* right) {
    const __m256i both = load_8x32(base, lanes(at));
    *left = _mm256_cvtph_ps(narrow(_mm256_and_si256(both, _mm256_set1_epi32(0xffff))));
    *right = _mm256_cvtph_ps(narrow(_mm256_srli_epi32(both, 16)));
  }

  static STN_HD void gather_pair(const BFloat* base, const Offset& at, const Warp&, F* left, F* right) {
    const __m256i both = load_8x32(base, lanes(at));
    *left = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *right = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }

  /// Both neighbors are always read, so the pair must be inside the image.
  template <class T>
  static STN_HD void gather_pair(const T* base, const Offset& at, const Warp& w, M left_mask, M right_mask, F* left,
                                 F* right) {
    gather_pair(base, at, w, left, right);
    *left = _mm256_and_ps(left->v, _mm256_castsi256_ps(left_mask.v));
    *right = _mm256_and_ps(right->v, _mm256_castsi256_ps(right_mask.v));
  }

  static STN_HD void store(float* to, F value, int count) {
    if (count == 8) {
      _mm256_storeu_ps(to, value.v);
    } else {
      _mm256_maskstore_ps(to, first(count), value.v);
    }
  }
  static STN_HD void store(Half* to, F value, int count) {
    store_bits(to, _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), count);
  }
  static STN_HD void store(BFloat* to, F value, int count) {
    const __m256i bits = _mm256_castps_si256(value.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value.v, value.v, _CMP_UNORD_Q));
    store_bits(to, narrow(_mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16)), count);
  }

  /// `count` consecutive values, for channels-last images.
  static STN_HD F load_values(const float* from, int count) { return load(from, count); }
  static STN_HD F load_values(const Half* from, int count) { return _mm256_cvtph_ps(load_bits(from, count)); }
  static STN_HD F load_values(const BFloat* from, int count) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(from, count)), 16));
  }

  /// Transposes eight vectors.
  static STN_HD void transpose(F* v) {
    __m256 quads[8];
    for (int i = 0; i < 8; i += 4) {
      const __m256 low01 = _mm256_unpacklo_ps(v[i].v, v[i + 1].v), high01 = _mm256_unpackhi_ps(v[i].v, v[i + 1].v);
      const __m256 low23 = _mm256_unpacklo_ps(v[i + 2].v, v[i + 3].v);
      const __m256 high23 = _mm256_unpackhi_ps(v[i + 2].v, v[i + 3].v);
      quads[i] = _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(1, 0, 1, 0));
      quads[i + 1] = _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(3, 2, 3, 2));
      quads[i + 2] = _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(1, 0, 1, 0));
      quads[i + 3] = _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int c = 0; c < 4; ++c) {
      v[c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x20);
      v[4 + c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x31);
    }
  }

  /// Rank vectors of consecutive values x y(z) x y(z) ... to one vector per coordinate.
  template <int Rank>
  static STN_HD void deinterleave(F* v) {
    const __m256 a = v[0].v, b = v[1].v;
    if (Rank == 2) {
      const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
      v[0] = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
      v[1] = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
      return;
    }
    // The elements of one coordinate are at different positions in the three vectors: blend, then put in order.
    constexpr int zero = 0x49, one = 0x92, two = 0x24;  // positions 0, 3, 6; 1, 4, 7; 2, 5
    const __m256 c = v[2].v;
    const __m256 x = _mm256_blend_ps(_mm256_blend_ps(a, b, one), c, two);
    const __m256 y = _mm256_blend_ps(_mm256_blend_ps(a, b, two), c, zero);
    const __m256 z = _mm256_blend_ps(_mm256_blend_ps(a, b, zero), c, one);
    v[0] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
    v[1] = _mm256_permutevar8x32_ps(y, _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6));
    v[2] = _mm256_permutevar8x32_ps(z, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
  }

 private:
  static STN_HD LaneIndices lanes(const I& at) { return LaneIndices(&at.v); }
  static STN_HD __m256 values_at(const float* base, LaneIndices at) { return _mm256_castsi256_ps(load_8x32(base, at)); }
  static STN_HD __m256 values_at(const Half* base, LaneIndices at) { return _mm256_cvtph_ps(load_8x16(base, at)); }
  static STN_HD __m256 values_at(const BFloat* base, LaneIndices at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_8x16(base, at)), 16));
  }
  /// Packs eight 32-bit numbers below 2^16 into 16 bits each.
  static STN_HD __m128i narrow(__m256i values) {
    const __m256i packed = _mm256_packus_epi32(values, values);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static STN_HD void store_bits(void* to, __m128i bits, int count) {
    if (count == 8) {
      _mm_storeu_si128(static_cast<__m128i*>(to), bits);
    } else {
      alignas(16) uint16_t lanes[8];
      _mm_store_si128(reinterpret_cast<__m128i*>(lanes), bits);
      memcpy(to, lanes, static_cast<size_t>(count) * 2);
    }
  }
  static STN_HD __m128i load_bits(const void* from, int count) {
    if (count == 8) return _mm_loadu_si128(static_cast<const __m128i*>(from));
    alignas(16) uint16_t lanes[8] = {};
    memcpy(lanes, from, static_cast<size_t>(count) * 2);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
  }
};

}  // namespace stn

#endif  // STN_KERNELS_LANES_AVX2_HPP_
