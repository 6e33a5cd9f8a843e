/// \file lanes_loads.hpp
/// \brief Gathers values from several addresses into one vector, with one load each.
///
/// Gather instructions are not used: on processors with the microcode mitigation for Gather Data Sampling they take
/// three to six times as long as these loads (measured: 22 and 45 ns instead of 7 ns for sixteen values).
#ifndef STN_KERNELS_LANES_LOADS_HPP_
#define STN_KERNELS_LANES_LOADS_HPP_

#include <immintrin.h>

#include "kernels/numbers.hpp"

namespace stn {

/// The 32-bit integers in the lanes of a vector, read from its memory with memcpy. Reading them through an int pointer
/// would violate strict aliasing, and the compiler could drop the vector's store.
class LaneIndices {
 public:
  STN_HD explicit LaneIndices(const void* vector, int first = 0)
      : bytes_(static_cast<const char*>(vector) + 4 * first) {}
  STN_HD int32_t operator[](int lane) const {
    int32_t value;
    memcpy(&value, bytes_ + 4 * lane, sizeof value);
    return value;
  }
  STN_HD LaneIndices from(int lane) const { return LaneIndices(bytes_, lane); }

 private:
  const char* bytes_;
};

/// Two eight-byte values at `base + at[0]` and `base + at[1]`.
STN_HD __m128 load_2x64(const float* base, LaneIndices at) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + at[0]));
  return _mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(base + at[1]));
}

/// Four eight-byte values.
STN_HD __m256 load_4x64(const float* base, LaneIndices at) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(load_2x64(base, at)), load_2x64(base, at.from(2)), 1);
}

STN_HD int32_t load_32(const void* from) {
  int32_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

/// Four four-byte values; `at` is in units of T.
template <class T>
STN_HD __m128i load_4x32(const T* base, LaneIndices at) {
  const __m128i low = _mm_insert_epi32(_mm_cvtsi32_si128(load_32(base + at[0])), load_32(base + at[1]), 1);
  const __m128i high = _mm_insert_epi32(_mm_cvtsi32_si128(load_32(base + at[2])), load_32(base + at[3]), 1);
  return _mm_unpacklo_epi64(low, high);
}

/// Eight four-byte values.
template <class T>
STN_HD __m256i load_8x32(const T* base, LaneIndices at) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_4x32(base, at)), load_4x32(base, at.from(4)), 1);
}

/// Eight two-byte values.
template <class T>
STN_HD __m128i load_8x16(const T* base, LaneIndices at) {
  __m128i v = _mm_cvtsi32_si128(base[at[0]].bits);
  v = _mm_insert_epi16(v, base[at[1]].bits, 1);
  v = _mm_insert_epi16(v, base[at[2]].bits, 2);
  v = _mm_insert_epi16(v, base[at[3]].bits, 3);
  v = _mm_insert_epi16(v, base[at[4]].bits, 4);
  v = _mm_insert_epi16(v, base[at[5]].bits, 5);
  v = _mm_insert_epi16(v, base[at[6]].bits, 6);
  return _mm_insert_epi16(v, base[at[7]].bits, 7);
}

}  // namespace stn

#endif  // STN_KERNELS_LANES_LOADS_HPP_
