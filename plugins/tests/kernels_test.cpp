/// \file kernels_test.cpp
/// \brief Runs every combination of the kernels on arrays of the exact size, with extreme and invalid coordinates.
///
///     kernels_test [--cuda | --cuda-on-cpu] [--every N]
///
/// For AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and with --cuda for compute-sanitizer: nothing
/// may be read or written out of bounds, and no float may be converted to an integer type that cannot represent it.
/// For all coordinates, the outputs must be within the image's range (bicubic: slightly beyond). The CPU kernels'
/// values are tested from Python. The CUDA kernels' values, on a GPU or compiled for the CPU, must equal those of the
/// CPU kernels for ordinary coordinates. --every N runs only every Nth combination.
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
#include "kernels_arrays.hpp"
#include "kernels_checks.hpp"
#include "kernels_refusals.hpp"
#include "stn/stn.h"

namespace {

/// One combination, with ordinary coordinates if `tame`; `between`: elements after the channels of a pixel.
void run_one(stn_problem p, const Shape& s, bool tame, std::mt19937& random, int64_t between = 3) {
  const int64_t in_pixels = product(s.in, p.rank), pixels = product(s.out, p.rank);
  const int64_t pitch = s.channels + between;
  const int64_t in_width = p.input_layout == STN_PLANAR ? s.channels : pitch;
  const int64_t out_width = p.output_layout == STN_PLANAR ? s.channels : pitch;
  // A projective grid without a basis is one of pixel centers.
  const bool centers = p.kind == STN_AFFINE || (p.kind == STN_PROJECTIVE && random() % 2 == 0);
  const bool any_basis = !centers && (p.kind == STN_BASIS || p.kind == STN_PROJECTIVE);
  const int64_t rows = centers ? p.rank + 1 : any_basis ? basis_rows(random) : 5;
  if (p.kind == STN_PROJECTIVE) set_quotient(&p, tame, tame && !centers, random);
  p.struct_size = sizeof p;
  p.batch = s.batch;
  // Sometimes the whole batch shares one theta or one image.
  p.theta_batch = random() % 4 == 0 ? 1 : s.batch;
  p.input_batch = random() % 4 == 0 ? 1 : s.batch;
  p.channels = s.channels;
  p.channel_pitch_in = p.channel_pitch_out = pitch;
  std::copy_n(s.in, 3, p.input_size);
  std::copy_n(s.out, 3, p.output_size);
  p.basis_rows = rows;
  p.points = pixels;
  const Lattice lattice = make_lattice(&p, pixels, random);

  Array input(p.input_batch * in_width * in_pixels, p.dtype), output(s.batch * out_width * pixels, p.dtype);
  for (int64_t i = 0; i < input.count; ++i) input.set(i, static_cast<float>(random() % 256) / 256);
  for (int64_t i = 0; i < output.count; ++i) output.set(i, 0.25f);
  const int64_t theta_count = p.kind == STN_GRID         ? pixels * p.rank
                              : p.kind == STN_PROJECTIVE ? (p.rank + 1) * rows
                                                         : p.rank * p.basis_rows;
  Array theta(p.theta_batch * theta_count, p.kind == STN_GRID ? p.grid_dtype : STN_FP32);
  for (int64_t i = 0; i < theta.count; ++i) {
    const float value = tame ? ordinary(random) : nasty(random);
    const bool narrow = theta.dtype != STN_FP32 && !(std::fabs(value) < 100);
    theta.set(i, narrow ? 0.5f : value);
    // A last row for which w is never near 0; among the others, one for which it is 0, or not a number, everywhere.
    if (tame && p.kind == STN_PROJECTIVE && i % theta_count == theta_count - 1) theta.set(i, p.rank + 1.5f);
  }
  if (!tame && p.kind == STN_PROJECTIVE && random() % 4 == 0) {
    const float w = random() % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    for (int64_t i = theta_count - rows; i < theta_count && i < theta.count; ++i) theta.set(i, w);
  }
  Array basis((p.kind == STN_LATTICE ? kTaps : rows) * pixels, STN_FP32);
  for (int64_t i = 0; i < basis.count; ++i) {
    basis.set(i, !tame && random() % 50 == 0 ? nasty(random) : 0.01f * (random() % 100));
  }

  p.input = input.bytes.get();
  p.theta = theta.bytes.get();
  const bool reads_basis = p.kind == STN_BASIS || p.kind == STN_LATTICE || (p.kind == STN_PROJECTIVE && !centers);
  p.basis = reads_basis ? reinterpret_cast<const float*>(basis.bytes.get()) : nullptr;
  p.output = output.bytes.get();
  expect(stn_check(&p) == STN_OK, "check", p);
  const int threads = 1 + static_cast<int>(random() % 3);
  const int status = device ? run_on_device(p, input, theta, basis, lattice, &output) : stn_run_cpu(&p, threads);
  expect(status == STN_OK, "run", p);
  const float slack = p.mode == STN_BICUBIC ? 1.0f : 1e-2f;
  bool inside = true;
  for (int64_t i = 0; i < output.count; ++i) inside = inside && output.get(i) >= -slack && output.get(i) <= 1 + slack;
  expect(inside, "values within the image's range", p);
  if (device && tame) compare(p, output, nullptr);
  if (device && !tame && p.kind == STN_AFFINE && p.mode == STN_BILINEAR) compare(p, output, &theta);
}

/// The last corner of an image of more than 2^28 pixels, beyond the range of 32-bit byte offsets; only the memory of
/// that corner is accessed.
void run_far_corner(std::mt19937& random) {
  constexpr int64_t kSide = 33000, kCorner = 12;
  const std::unique_ptr<void, decltype(&std::free)> image(std::calloc(kSide * kSide, 4), std::free);
  auto* pixels = static_cast<float*>(image.get());
  for (int64_t y = kSide - 2 * kCorner; y < kSide; ++y)
    for (int64_t x = kSide - 2 * kCorner; x < kSide; ++x)
      pixels[y * kSide + x] = static_cast<float>(random() % 256) / 256;
  const float scale = static_cast<float>(kCorner) / kSide;
  const float theta[] = {scale, 0.0f, 1.0f - scale, 0.0f, scale, 1.0f - scale};
  Array output(kCorner * kCorner, STN_FP32);
  stn_problem p{};
  p.struct_size = sizeof p;
  p.rank = 2;
  p.batch = p.theta_batch = p.input_batch = p.channels = 1;
  for (int d = 0; d < 2; ++d) p.input_size[d] = kSide, p.output_size[d] = kCorner;
  p.basis_rows = 3;
  p.input = pixels;
  p.theta = theta;
  p.output = output.bytes.get();
  for (int mode : {STN_NEAREST, STN_BICUBIC, STN_BILINEAR}) {
    p.mode = mode;
    expect(stn_run_cuda(&p, nullptr) == STN_OK, "run", p);
    double sum = 0;
    for (int64_t i = 0; i < output.count; ++i) sum += output.get(i);
    expect(sum > 0.3 * output.count, "corner is not empty", p);
    // Coordinates near 33000 pixels have an error of 0.004 in fp32, which differs between compilers.
    Array on_cpu(output.count, STN_FP32);
    p.output = on_cpu.bytes.get();
    expect(stn_run_cpu(&p, 1) == STN_OK, "run on the CPU", p);
    int64_t off = 0;
    for (int64_t i = 0; i < output.count; ++i) off += std::fabs(output.get(i) - on_cpu.get(i)) > 0.02f;
    expect(off == 0 || (mode == STN_NEAREST && off < 3), "the CPU kernels' values far out", p);
    p.output = output.bytes.get();
  }
}

void run_all(const Shape& shape, int rank, std::mt19937& random) {
  for (int kind : {STN_AFFINE, STN_BASIS, STN_PROJECTIVE, STN_GRID, STN_TENSOR_PRODUCT, STN_LATTICE})
    for (int mode : {STN_BILINEAR, STN_NEAREST, STN_BICUBIC})
      for (int padding : {STN_ZEROS, STN_BORDER, STN_REFLECTION})
        for (int align : {0, 1})
          for (int dtype : {STN_FP32, STN_FP16, STN_BF16})
            for (int layouts = 0; layouts < 4; ++layouts) {
              if (rank == 3 && mode == STN_BICUBIC) continue;
              if (combinations++ % every != 0) continue;
              stn_problem p{};
              p.rank = rank;
              p.kind = kind;
              p.mode = mode;
              p.padding = padding;
              p.align_corners = align;
              p.dtype = dtype;
              // An image's grid may have another type: most often fp32, whatever the image is.
              p.grid_dtype = static_cast<int32_t>(combinations % 2 == 0 ? int64_t{STN_FP32} : combinations % 3);
              p.input_layout = layouts & 1;
              p.output_layout = layouts >> 1;
              run_one(p, shape, false, random);
              if (device) run_one(p, shape, true, random);
            }
}

/// Sizes for all CUDA launch shapes: several pixels per thread, in tiles of unequal height; channels in one chunk and
/// in several; and more samples than a grid has blocks.
void run_large(std::mt19937& random) {
  stn_problem p{};
  p.rank = 2;
  run_one(p, {1, 1, {30, 20, 0}, {800, 700, 0}}, true, random);
  p.padding = STN_BORDER;
  run_one(p, {80, 1, {4, 5, 0}, {70, 200, 0}}, true, random);
  p.padding = STN_REFLECTION;
  run_one(p, {2, 21, {9, 7, 0}, {150, 220, 0}}, true, random);
  p.dtype = STN_FP16;
  run_one(p, {3, 2, {9, 7, 0}, {300, 300, 0}}, true, random);
  p.padding = STN_ZEROS;
  run_one(p, {20000, 8, {2, 3, 0}, {1, 2, 0}}, true, random);
  p.dtype = STN_FP32;
  run_one(p, {66000, 1, {2, 3, 0}, {4, 16, 0}}, true, random);
  // A basis with enough pixels for several samples per thread, not a multiple of them.
  p.kind = STN_BASIS;
  for (int64_t channels : {1, 3, 5, 8}) {
    for (int layout : {STN_PLANAR, STN_CHANNELS_LAST}) {
      p.padding = static_cast<int32_t>(channels % 3);
      p.dtype = static_cast<int32_t>(channels % 2);
      p.input_layout = p.output_layout = layout;
      run_one(p, {77, channels, {9, 7, 0}, {121, 117, 0}}, true, random);
    }
  }
}

/// Each number of channels that a kernel treats differently, in every layout and type, also at addresses that are only
/// aligned to an element.
void run_channels(std::mt19937& random) {
  for (int64_t channels : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64})
    for (int kind : {STN_AFFINE, STN_PROJECTIVE, STN_GRID})
      for (int mode : {STN_BILINEAR, STN_NEAREST})
        for (int dtype : {STN_FP32, STN_FP16, STN_BF16})
          for (int layouts = 0; layouts < 4; ++layouts)
            for (int64_t elements : {0, 1}) {
              stn_problem p{};
              p.rank = 2;
              p.kind = kind;
              p.mode = mode;
              p.dtype = p.grid_dtype = dtype;
              p.input_layout = layouts & 1;
              p.output_layout = layouts >> 1;
              p.padding = static_cast<int32_t>(random() % 3);
              shift = elements;
              // Without padding between pixels, a number of channels is aligned or not.
              run_one(p, {2, channels, {9, 13, 0}, {11, 7, 0}}, true, random, 0);
            }
  shift = 0;
}

/// Concurrent callers share one pool.
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
  expect(std::count(wrong.begin(), wrong.end(), 0) == 4, "concurrent callers", stn_problem{});
}

/// The first launch of all, inside of a capture: the kernel is loaded there, and the graph has the CPU kernels' values.
void run_captured() {
  constexpr int kCount = 12 * 11;
  std::vector<float> image(kCount), expected(kCount);
  for (int i = 0; i < kCount; ++i) image[i] = static_cast<float>(i % 7);
  const float theta[] = {0.9f, 0.1f, 0.05f, -0.2f, 1.1f, 0.0f};
  stn_problem p{};
  p.struct_size = sizeof p;
  p.rank = 2;
  p.batch = p.theta_batch = p.input_batch = p.channels = 1;
  p.input_size[0] = p.output_size[0] = 12;
  p.input_size[1] = p.output_size[1] = 11;
  p.basis_rows = 3;
  p.input = image.data(), p.theta = theta, p.output = expected.data();
  expect(stn_run_cpu(&p, 1) == STN_OK, "run", p);
  const auto bytes = [](const float* from, size_t count) {
    const char* first = reinterpret_cast<const char*>(from);
    return std::vector<char>(first, first + count * sizeof *from);
  };
  void* const buffers[] = {device->upload(bytes(image.data(), kCount)), device->upload(bytes(theta, 6)),
                           device->upload(std::vector<char>(kCount * sizeof(float)))};
  p.input = buffers[0], p.theta = buffers[1], p.output = buffers[2];
  device->begin_capture();
  const int status = stn_run_cuda(&p, device->stream());
  device->run_captured();
  expect(status == STN_OK, stn_status_text(status), p);
  const std::vector<char> found = device->download(buffers[2], kCount * sizeof(float));
  float most = 0.0f;
  for (int i = 0; i < kCount; ++i) {
    const float value = reinterpret_cast<const float*>(found.data())[i];
    most = std::max(most, std::fabs(value - expected[i]));
  }
  expect(most < 1e-4f, "a captured launch", p);
  for (void* buffer : buffers) device->release(buffer);
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--cuda") == 0) {
      device = std::make_unique<CudaDevice>();
    } else if (std::strcmp(arguments[i], "--cuda-on-cpu") == 0) {
      device = std::make_unique<HostDevice>();
    } else if (std::strcmp(arguments[i], "--every") == 0 && i + 1 < count) {
      every = std::max(1, std::atoi(arguments[++i]));
    } else {
      std::fprintf(stderr, "usage: %s [--cuda | --cuda-on-cpu] [--every N]\n", arguments[0]);
      return 2;
    }
  }
  if (device) run_captured();
  std::mt19937 random(7);
  // Fewer and more pixels than 64, from which on the affine CUDA kernel is used.
  const Shape images[] = {{2, 3, {5, 7, 0}, {6, 11, 0}},  {1, 21, {1, 1, 0}, {3, 3, 0}},
                          {1, 1, {1, 6, 0}, {1, 137, 0}}, {1, 2, {6, 1, 0}, {70, 1, 0}},
                          {3, 1, {2, 2, 0}, {9, 33, 0}},  {1, 70, {3, 4, 0}, {17, 19, 0}},
                          {2, 5, {1, 1, 0}, {8, 8, 0}},   {3, 2, {4, 3, 0}, {7, 9, 0}},
                          {0, 2, {3, 3, 0}, {2, 2, 0}},   {1, 17, {6, 40, 0}, {5, 70, 0}}};
  const Shape volumes[] = {{2, 3, {3, 5, 4}, {2, 4, 5}},
                           {2, 1, {3, 5, 4}, {5, 6, 7}},
                           {1, 1, {1, 1, 1}, {2, 3, 3}},
                           {1, 9, {2, 1, 6}, {5, 1, 7}},
                           {1, 8, {3, 4, 5}, {2, 9, 6}}};
  const auto tell = [] {  // a run that is ended by a time limit has told what it checked
    if (!device) return;
    std::printf("%lld checks so far, %d failed\n", static_cast<long long>(checks), failures);
    std::fflush(stdout);
  };
  for (const Shape& shape : images) {
    run_all(shape, 2, random);
    tell();
  }
  for (const Shape& shape : volumes) {
    run_all(shape, 3, random);
    tell();
  }
  if (device) {
    run_large(random);
    run_channels(random);
    if (device->stream() == nullptr) run_far_corner(random);
    expect(nearest.off * 200 <= nearest.values, "nearest: the CPU kernels' values", stn_problem{});
    std::printf("compared: %lld values; nearest: %lld of %lld off\n", static_cast<long long>(interpolated.values),
                static_cast<long long>(nearest.off), static_cast<long long>(nearest.values));
  } else {
    run_together();
  }
  refuse_nonsense();
  refuse_devices();
  std::printf("%s: %lld checks, %d failed\n", device ? "cuda" : stn_cpu_isa(), static_cast<long long>(checks),
              failures);
  return failures == 0 ? 0 : 1;
}
