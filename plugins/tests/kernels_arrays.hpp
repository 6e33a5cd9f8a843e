/// \file kernels_arrays.hpp
/// \brief The arrays of the kernels' test: of exactly the size that a problem needs, with extreme or ordinary values.
#ifndef STN_TESTS_KERNELS_ARRAYS_HPP_
#define STN_TESTS_KERNELS_ARRAYS_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "stn/stn.h"

namespace {

/// An array of exactly `count` elements of a type, so that a sanitizer detects the first access beyond it.
struct Array {
  Array(int64_t count, int dtype) : dtype(dtype), count(count), bytes(new char[count * (dtype == STN_FP32 ? 4 : 2)]) {}

  void set(int64_t i, float value) {
    if (dtype == STN_FP32) {
      reinterpret_cast<float*>(bytes.get())[i] = value;
    } else {
      // Except for the random ones, values are small sums of powers of two, for which truncating bits is exact.
      uint32_t bits;
      std::copy_n(reinterpret_cast<const char*>(&value), 4, reinterpret_cast<char*>(&bits));
      uint16_t half = static_cast<uint16_t>(bits >> 16);
      if (dtype == STN_FP16) {
        const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127 + 15;
        half =
            static_cast<uint16_t>((bits >> 16 & 0x8000) | (exponent <= 0 ? 0 : exponent << 10 | (bits >> 13 & 0x3ff)));
      }
      reinterpret_cast<uint16_t*>(bytes.get())[i] = half;
    }
  }

  float get(int64_t i) const {
    if (dtype == STN_FP32) return reinterpret_cast<const float*>(bytes.get())[i];
    const uint16_t half = reinterpret_cast<const uint16_t*>(bytes.get())[i];
    if (dtype == STN_BF16) {
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      float value;
      std::copy_n(reinterpret_cast<const char*>(&bits), 4, reinterpret_cast<char*>(&value));
      return value;
    }
    const int exponent = half >> 10 & 31;
    const float fraction = static_cast<float>(half & 0x3ff) / 1024;
    const float magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
    return half & 0x8000 ? -magnitude : magnitude;
  }

  int64_t element_size() const { return dtype == STN_FP32 ? 4 : 2; }

  int64_t size() const { return count * element_size(); }

  int dtype;
  int64_t count;
  std::unique_ptr<char[]> bytes;
};

/// The constants of a lattice: exactly as large as the problem says.
struct Lattice {
  Array planes{0, STN_FP32}, rows{0, STN_FP32}, columns{0, STN_FP32};
  std::vector<int32_t> index;
};

struct Shape {
  int64_t batch, channels, in[3], out[3];
};

int64_t product(const int64_t* sizes, int rank) {
  int64_t result = 1;
  for (int d = 0; d < rank; ++d) result *= sizes[d];
  return result;
}

/// A number that is ordinary, on a border, at a tie, or not finite.
float nasty(std::mt19937& random) {
  static const float specials[] = {0.0f,
                                   -1.0f,
                                   1.0f,
                                   -0.5f,
                                   0.5f,
                                   1e30f,
                                   -1e30f,
                                   3e38f,
                                   -3e38f,
                                   2.1e9f,
                                   -2.2e9f,
                                   std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity(),
                                   std::numeric_limits<float>::quiet_NaN()};
  const unsigned choice = random() % 40;
  if (choice < std::size(specials)) return specials[choice];
  return std::uniform_real_distribution<float>(-2.5f, 2.5f)(random);
}

/// A coordinate, or an element of theta, whose pixel does not depend on rounding.
float ordinary(std::mt19937& random) { return std::uniform_real_distribution<float>(-1.3f, 1.3f)(random); }

/// K of a basis: from one to more than any family has.
int64_t basis_rows(std::mt19937& random) {
  static const int64_t counts[] = {1, 2, 3, 4, 5, 7, 16, 33};
  return counts[random() % std::size(counts)];
}

/// Sets the bound of a projective problem's denominator, and the offset. Without `tame` they may be extreme.
void set_quotient(stn_problem* p, bool tame, bool clamp, std::mt19937& random) {
  constexpr float kMost = std::numeric_limits<float>::max(), kInfinity = std::numeric_limits<float>::infinity();
  static const float bounds[] = {0.0f, -0.0f, 0.5f, -0.5f, 1e-40f, 1e30f, kMost, -kMost, kInfinity, -kInfinity};
  p->clamp_w = clamp ? 1 : static_cast<int32_t>(random() % 2);
  p->w_min = tame ? 0.5f : bounds[random() % std::size(bounds)];
  if (p->clamp_w == 0) p->w_min = std::numeric_limits<float>::quiet_NaN();  // not read
  for (int d = 0; d < p->rank; ++d) {
    const float offset = tame || random() % 2 == 0 ? ordinary(random) / 4 : nasty(random);
    p->offset[d] = std::isfinite(offset) ? offset : kMost;
  }
}

/// Lattice points per pixel.
constexpr int64_t kTaps = 4;

/// A matrix of weights, some of which are 0, so that rows, columns and planes are skipped; a whole row may be.
Array weights(int64_t count, std::mt19937& random) {
  Array result(count, STN_FP32);
  for (int64_t i = 0; i < count; ++i) result.set(i, random() % 3 == 0 ? 0.0f : 0.01f * (random() % 60));
  return result;
}

/// Sets a problem's lattice; an index may lie outside of it.
Lattice make_lattice(stn_problem* p, int64_t pixels, std::mt19937& random) {
  Lattice lattice;
  if (p->kind == STN_TENSOR_PRODUCT) {
    const int64_t depth = p->rank == 3 ? p->output_size[0] : 1;
    const int64_t height = p->output_size[p->rank - 2], width = p->output_size[p->rank - 1];
    p->lattice[0] = p->rank == 3 ? 2 : 1;
    p->lattice[1] = 3;
    p->lattice[2] = random() % 8 == 0 ? 300 : 5;  // more columns than are contracted at a time
    p->basis_rows = p->lattice[0] * p->lattice[1] * p->lattice[2];
    lattice.planes = weights(depth * p->lattice[0], random);
    lattice.rows = weights(height * p->lattice[1], random);
    lattice.columns = weights(width * p->lattice[2], random);
    if (p->rank == 3) p->planes = reinterpret_cast<const float*>(lattice.planes.bytes.get());
    p->rows = reinterpret_cast<const float*>(lattice.rows.bytes.get());
    p->columns = reinterpret_cast<const float*>(lattice.columns.bytes.get());
    p->points = 0;
  }
  if (p->kind == STN_LATTICE) {
    p->taps = kTaps;
    lattice.index.resize(static_cast<size_t>(kTaps * pixels));
    for (int32_t& index : lattice.index) {
      index = random() % 30 == 0 ? static_cast<int32_t>(random()) : static_cast<int32_t>(random() % 5);
    }
    p->index = lattice.index.data();
  }
  return lattice;
}

}  // namespace

#endif  // STN_TESTS_KERNELS_ARRAYS_HPP_
