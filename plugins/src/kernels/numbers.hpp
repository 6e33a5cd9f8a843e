/// \file numbers.hpp
/// \brief The element types of images: stored in 32 or 16 bits, converted to fp32 for computation.
#ifndef STN_KERNELS_NUMBERS_HPP_
#define STN_KERNELS_NUMBERS_HPP_

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "stn/sampling.hpp"

namespace stn {

/// IEEE half precision, as its bits.
struct Half {
  uint16_t bits;
};

/// bfloat16, as its bits.
struct BFloat {
  uint16_t bits;
};

STN_HD float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

STN_HD uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

STN_HD float to_float(float value) { return value; }

STN_HD float to_float(BFloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

STN_HD float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Shifting the bits into a float and scaling by 2^112 is exact, also for subnormal numbers.
  const float scaled = float_of(magnitude << 13) * float_of(0x77800000u);
  return float_of(sign | bits_of(scaled));
#endif
}

STN_HD void from_float(float value, float* to) { *to = value; }

STN_HD void from_float(float value, BFloat* to) {
#ifdef __CUDA_ARCH__
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    to->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);  // keeps NaN a NaN
  } else {
    to->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, half to even
  }
#endif
}

STN_HD void from_float(float value, Half* to) {
#ifdef __CUDA_ARCH__
  to->bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded to nearest even, at the bottom.
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
#endif
}

/// Two numbers of a 16-bit type in a word, the first one in its lower half.
template <class T>
STN_HD uint32_t two_of(float first, float second) {
  T low, high;
  from_float(first, &low);
  from_float(second, &high);
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}

}  // namespace stn

#endif  // STN_KERNELS_NUMBERS_HPP_
