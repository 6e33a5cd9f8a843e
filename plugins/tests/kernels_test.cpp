/// \file kernels_test.cpp
/// \brief Runs every combination of the kernels on arrays of exactly the right size, with coordinates from hell.
///
///     kernels_test [--cuda] [--every N]
///
/// Made for AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and with --cuda for compute-sanitizer:
/// nothing may be read or written out of bounds, and no float may be turned into an integer that cannot hold it. What
/// comes out must lie within the image's range (bicubic: a little beyond), whatever the coordinates were; the exact
/// values are tested from Python. --every N takes each Nth combination only.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "device_memory.hpp"
#include "stn/stn.h"

namespace {

int failures = 0;
int64_t checks = 0;
int64_t combinations = 0;
int64_t every = 1;
std::unique_ptr<CudaDevice> gpu;  // none: the CPU kernels are run

void expect(bool ok, const char* what, const stn_problem& p) {
  ++checks;
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s: rank %d kind %d mode %d padding %d align %d dtype %d layouts %d %d, %lld channels\n",
               what, p.rank, p.kind, p.mode, p.padding, p.align_corners, p.dtype, p.input_layout, p.output_layout,
               static_cast<long long>(p.channels));
}

/// An array of exactly `count` elements of a type, so that a sanitizer sees the first access beyond it.
struct Array {
  Array(int64_t count, int dtype) : dtype(dtype), count(count), bytes(new char[count * (dtype == STN_FP32 ? 4 : 2)]) {}

  void set(int64_t i, float value) {
    if (dtype == STN_FP32) {
      reinterpret_cast<float*>(bytes.get())[i] = value;
    } else {
      // Values here are small sums of powers of two: cutting off the float's bits is exact, but for the random ones.
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

  int64_t size() const { return count * (dtype == STN_FP32 ? 4 : 2); }

  int dtype;
  int64_t count;
  std::unique_ptr<char[]> bytes;
};

/// Runs a problem on copies of its arrays on the GPU, and brings the output back.
int run_on_gpu(stn_problem p, const Array& input, const Array& theta, const Array& basis, Array* output) {
  std::vector<void*> buffers;
  const Array* arrays[] = {&input, &theta, &basis, output};
  for (const Array* array : arrays) {
    buffers.push_back(gpu->upload(std::vector<char>(array->bytes.get(), array->bytes.get() + array->size())));
  }
  p.input = buffers[0];
  p.theta = buffers[1];
  if (p.basis != nullptr) p.basis = static_cast<const float*>(buffers[2]);
  p.output = buffers[3];
  const int status = stn_run_cuda(&p, gpu->stream());
  const std::vector<char> answer = gpu->download(p.output, output->size());
  std::copy(answer.begin(), answer.end(), output->bytes.get());
  for (void* buffer : buffers) gpu->release(buffer);
  return status;
}

struct Shape {
  int64_t batch, channels, in[3], out[3];
};

int64_t product(const int64_t* sizes, int rank) {
  int64_t result = 1;
  for (int d = 0; d < rank; ++d) result *= sizes[d];
  return result;
}

/// A number that is sometimes ordinary, sometimes on a border or a tie, and sometimes not one at all.
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

void run_one(stn_problem p, const Shape& s, std::mt19937& random) {
  const int64_t in_pixels = product(s.in, p.rank), pixels = product(s.out, p.rank);
  const int64_t pitch = s.channels + 3;
  const int64_t in_width = p.input_layout == STN_PLANAR ? s.channels : pitch;
  const int64_t out_width = p.output_layout == STN_PLANAR ? s.channels : pitch;
  const int64_t rows = p.kind == STN_AFFINE ? p.rank + 1 : p.kind == STN_PROJECTIVE ? 3 : 5;
  p.struct_size = sizeof p;
  p.batch = p.theta_batch = p.input_batch = s.batch;
  p.channels = s.channels;
  p.channel_pitch_in = p.channel_pitch_out = pitch;
  std::copy_n(s.in, 3, p.input_size);
  std::copy_n(s.out, 3, p.output_size);
  p.basis_rows = rows;

  Array input(s.batch * in_width * in_pixels, p.dtype), output(s.batch * out_width * pixels, p.dtype);
  for (int64_t i = 0; i < input.count; ++i) input.set(i, static_cast<float>(random() % 256) / 256);
  for (int64_t i = 0; i < output.count; ++i) output.set(i, 0.25f);
  const int64_t theta_count = p.kind == STN_GRID         ? pixels * p.rank
                              : p.kind == STN_PROJECTIVE ? 3 * rows
                                                         : p.rank * rows;
  Array theta(s.batch * theta_count, p.kind == STN_GRID ? p.grid_dtype : STN_FP32);
  for (int64_t i = 0; i < theta.count; ++i) {
    const float value = nasty(random);
    const bool narrow = theta.dtype != STN_FP32 && !(std::fabs(value) < 100);
    theta.set(i, narrow ? 0.5f : value);
  }
  Array basis(rows * pixels, STN_FP32);
  for (int64_t i = 0; i < basis.count; ++i) basis.set(i, random() % 50 == 0 ? nasty(random) : 0.01f * (random() % 100));

  p.input = input.bytes.get();
  p.theta = theta.bytes.get();
  p.basis = p.kind == STN_BASIS ? reinterpret_cast<const float*>(basis.bytes.get()) : nullptr;
  p.output = output.bytes.get();
  expect(stn_check(&p) == STN_OK, "check", p);
  const int threads = 1 + static_cast<int>(random() % 3);
  const int status = gpu ? run_on_gpu(p, input, theta, basis, &output) : stn_run_cpu(&p, threads);
  expect(status == STN_OK, "run", p);
  const float slack = p.mode == STN_BICUBIC ? 1.0f : 1e-2f;
  bool inside = true;
  for (int64_t i = 0; i < output.count; ++i) inside = inside && output.get(i) >= -slack && output.get(i) <= 1 + slack;
  expect(inside, "values within the image's range", p);
}

void run_all(const Shape& shape, int rank, std::mt19937& random) {
  for (int kind : {STN_AFFINE, STN_BASIS, STN_PROJECTIVE, STN_GRID})
    for (int mode : {STN_BILINEAR, STN_NEAREST, STN_BICUBIC})
      for (int padding : {STN_ZEROS, STN_BORDER, STN_REFLECTION})
        for (int align : {0, 1})
          for (int dtype : {STN_FP32, STN_FP16, STN_BF16})
            for (int layouts = 0; layouts < 4; ++layouts) {
              if (rank == 3 && (mode == STN_BICUBIC || kind == STN_PROJECTIVE)) continue;
              if (combinations++ % every != 0) continue;
              stn_problem p{};
              p.rank = rank;
              p.kind = kind;
              p.mode = mode;
              p.padding = padding;
              p.align_corners = align;
              p.dtype = dtype;
              p.grid_dtype = dtype;
              p.input_layout = layouts & 1;
              p.output_layout = layouts >> 1;
              run_one(p, shape, random);
            }
}

/// Many callers at once share one pool.
void run_together() {
  std::vector<std::thread> callers;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([t, &wrong] {
      std::vector<float> image(64 * 40 * 40), theta(64 * 6), output(image.size());
      for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<float>(i % 97 + t);
      for (int n = 0; n < 64; ++n) theta[n * 6] = theta[n * 6 + 4] = 1.0f;
      stn_problem p{};
      p.struct_size = sizeof p;
      p.rank = 2;
      p.batch = p.theta_batch = p.input_batch = 64;
      p.channels = 1;
      p.input_size[0] = p.input_size[1] = p.output_size[0] = p.output_size[1] = 40;
      p.basis_rows = 3;
      p.input = image.data();
      p.theta = theta.data();
      p.output = output.data();
      for (int round = 0; round < 20; ++round) {
        std::fill(output.begin(), output.end(), -1.0f);
        if (stn_run_cpu(&p, 3) != STN_OK) ++wrong[t];
        for (size_t i = 0; i < image.size(); ++i) wrong[t] += std::fabs(output[i] - image[i]) > 1e-2f;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect(std::count(wrong.begin(), wrong.end(), 0) == 4, "callers at once", stn_problem{});
}

/// What must be refused, with nothing read or written.
void refuse_nonsense() {
  float one = 1.0f;
  stn_problem good{};
  good.struct_size = sizeof good;
  good.rank = 2;
  good.batch = good.theta_batch = good.input_batch = good.channels = 1;
  for (int d = 0; d < 2; ++d) good.input_size[d] = good.output_size[d] = 1;
  good.basis_rows = 3;
  good.input = good.theta = good.output = &one;
  expect(stn_check(&good) == STN_OK, "a good problem", good);
  const auto refuse = [&good](int status, const char* what, auto change) {
    stn_problem bad = good;
    change(bad);
    expect(stn_check(&bad) == status && stn_run_cpu(&bad, 1) == status && stn_run_cuda(&bad, nullptr) == status, what,
           bad);
  };
  refuse(STN_ERROR_STRUCT_SIZE, "struct size", [](stn_problem& p) { p.struct_size = 8; });
  refuse(STN_ERROR_VALUE, "rank", [](stn_problem& p) { p.rank = 4; });
  refuse(STN_ERROR_VALUE, "mode", [](stn_problem& p) { p.mode = 3; });
  refuse(STN_ERROR_VALUE, "kind", [](stn_problem& p) { p.kind = -1; });
  refuse(STN_ERROR_VALUE, "dtype", [](stn_problem& p) { p.dtype = 7; });
  refuse(STN_ERROR_VALUE, "bicubic volume", [](stn_problem& p) { p.rank = 3, p.mode = STN_BICUBIC; });
  refuse(STN_ERROR_SIZE, "negative batch", [](stn_problem& p) { p.batch = -1; });
  refuse(STN_ERROR_SIZE, "theta batch", [](stn_problem& p) { p.batch = p.input_batch = 3, p.theta_batch = 2; });
  refuse(STN_ERROR_SIZE, "rows", [](stn_problem& p) { p.basis_rows = 4; });
  refuse(STN_ERROR_SIZE, "empty image", [](stn_problem& p) { p.input_size[0] = 0; });
  refuse(STN_ERROR_SIZE, "pitch", [](stn_problem& p) { p.channels = 4, p.channel_pitch_in = 2; });
  refuse(STN_ERROR_OVERFLOW, "side", [](stn_problem& p) { p.output_size[0] = int64_t{1} << 40; });
  refuse(STN_ERROR_OVERFLOW, "product", [](stn_problem& p) {
    p.batch = p.theta_batch = int64_t{1} << 40;
    p.output_size[0] = p.output_size[1] = 1 << 20;
  });
  refuse(STN_ERROR_POINTER, "no theta", [](stn_problem& p) { p.theta = nullptr; });
  refuse(STN_ERROR_POINTER, "no basis", [](stn_problem& p) { p.kind = STN_BASIS; });
  expect(stn_check(nullptr) == STN_ERROR_POINTER, "no problem", good);
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--cuda") == 0) {
      gpu = std::make_unique<CudaDevice>();
    } else if (std::strcmp(arguments[i], "--every") == 0 && i + 1 < count) {
      every = std::max(1, std::atoi(arguments[++i]));
    } else {
      std::fprintf(stderr, "usage: %s [--cuda] [--every N]\n", arguments[0]);
      return 2;
    }
  }
  std::mt19937 random(7);
  const Shape images[] = {{2, 3, {5, 7, 0}, {4, 11, 0}}, {1, 17, {1, 1, 0}, {3, 3, 0}}, {1, 1, {1, 6, 0}, {1, 37, 0}},
                          {1, 2, {6, 1, 0}, {20, 1, 0}}, {3, 1, {2, 2, 0}, {9, 33, 0}}, {1, 70, {3, 4, 0}, {17, 19, 0}},
                          {0, 2, {3, 3, 0}, {2, 2, 0}}};
  const Shape volumes[] = {{2, 3, {3, 5, 4}, {2, 4, 5}},
                           {2, 1, {3, 5, 4}, {5, 6, 7}},
                           {1, 1, {1, 1, 1}, {2, 3, 3}},
                           {1, 9, {2, 1, 6}, {5, 1, 7}}};
  for (const Shape& shape : images) run_all(shape, 2, random);
  for (const Shape& shape : volumes) run_all(shape, 3, random);
  if (!gpu) run_together();
  refuse_nonsense();
  std::printf("%s: %lld checks, %d failed\n", gpu ? "cuda" : stn_cpu_isa(), static_cast<long long>(checks), failures);
  return failures == 0 ? 0 : 1;
}
