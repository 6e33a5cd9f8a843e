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
#include "stn/stn.h"

namespace {

int failures = 0;
int64_t checks = 0;
int64_t combinations = 0;
int64_t every = 1;
std::unique_ptr<Device> device;  // runs the CUDA kernels; null: the CPU kernels run

/// Outputs of the CUDA kernels compared with the CPU's. A nearest sampler may differ by one pixel at a tie.
struct Comparison {
  int64_t values = 0;
  int64_t off = 0;
};
Comparison nearest, interpolated;

void expect(bool ok, const char* what, const stn_problem& p) {
  ++checks;
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s: rank %d kind %d mode %d padding %d align %d dtype %d layouts %d %d, %lld channels\n",
               what, p.rank, p.kind, p.mode, p.padding, p.align_corners, p.dtype, p.input_layout, p.output_layout,
               static_cast<long long>(p.channels));
}

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

  int64_t size() const { return count * (dtype == STN_FP32 ? 4 : 2); }

  int dtype;
  int64_t count;
  std::unique_ptr<char[]> bytes;
};

/// The constants of a lattice: exactly as large as the problem says.
struct Lattice {
  Array planes{0, STN_FP32}, rows{0, STN_FP32}, columns{0, STN_FP32};
  std::vector<int32_t> index;
};

/// Runs a problem on copies of its arrays on the device, and copies the output back.
int run_on_device(stn_problem p, const Array& input, const Array& theta, const Array& basis, const Lattice& lattice,
                  Array* output) {
  std::vector<void*> buffers;
  const Array* arrays[] = {&input, &theta, &basis, output, &lattice.planes, &lattice.rows, &lattice.columns};
  for (const Array* array : arrays) {
    buffers.push_back(device->upload(std::vector<char>(array->bytes.get(), array->bytes.get() + array->size())));
  }
  const auto* bytes = reinterpret_cast<const char*>(lattice.index.data());
  buffers.push_back(device->upload(std::vector<char>(bytes, bytes + 4 * lattice.index.size())));
  p.input = buffers[0];
  p.theta = buffers[1];
  if (p.basis != nullptr) p.basis = static_cast<const float*>(buffers[2]);
  if (p.planes != nullptr) p.planes = static_cast<const float*>(buffers[4]);
  p.rows = static_cast<const float*>(buffers[5]);
  p.columns = static_cast<const float*>(buffers[6]);
  p.index = static_cast<const int32_t*>(buffers[7]);
  p.output = buffers[3];
  const int status = stn_run_cuda(&p, device->stream());
  const std::vector<char> answer = device->download(p.output, output->size());
  std::copy(answer.begin(), answer.end(), output->bytes.get());
  for (void* buffer : buffers) device->release(buffer);
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

/// Whether rounding cannot change which pixels a sample reads: every row of the affine theta is ordinary, or contains a
/// value that is not finite (so that no coordinate is finite).
bool is_clear(const stn_problem& p, const Array& theta, int64_t sample) {
  const int64_t columns = p.rank + 1, start = p.theta_batch == 1 ? 0 : sample * p.rank * columns;
  for (int64_t row = start; row < start + p.rank * columns; row += columns) {
    bool finite = true, small = true;
    for (int64_t i = row; i < row + columns; ++i) {
      finite = finite && std::isfinite(theta.get(i));
      small = small && std::fabs(theta.get(i)) < 1e5f;
    }
    if (finite && !small) return false;
  }
  return true;
}

/// Compares the CUDA kernels' output with the CPU kernels', channel by channel: the padding after a pixel's channels is
/// undefined. With a `theta`, compares only the samples whose pixels do not depend on rounding.
void compare(stn_problem p, const Array& output, const Array* theta) {
  Array expected(output.count, output.dtype);
  for (int64_t i = 0; i < expected.count; ++i) expected.set(i, 0.25f);
  p.output = expected.bytes.get();
  expect(stn_run_cpu(&p, 1) == STN_OK, "run on the CPU", p);
  const float tolerance = p.dtype == STN_FP32 ? 1e-4f : p.dtype == STN_FP16 ? 2e-3f : 1.6e-2f;
  const int64_t pitch = p.output_layout == STN_CHANNELS_LAST ? p.channel_pitch_out : 1;
  std::vector<bool> clear(p.batch, true);
  for (int64_t n = 0; theta != nullptr && n < p.batch; ++n) clear[n] = is_clear(p, *theta, n);
  Comparison here;
  for (int64_t i = 0; i < output.count; ++i) {
    if (!clear[i / (output.count / p.batch)] || (pitch != 1 && i % pitch >= p.channels)) continue;
    ++here.values;
    here.off += !(std::fabs(output.get(i) - expected.get(i)) <= tolerance);
  }
  Comparison& sum = p.mode == STN_NEAREST ? nearest : interpolated;
  sum.values += here.values;
  sum.off += here.off;
  expect(p.mode == STN_NEAREST || here.off == 0, "the CPU kernels' values", p);
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

/// One combination, with ordinary coordinates if `tame`.
void run_one(stn_problem p, const Shape& s, bool tame, std::mt19937& random) {
  const int64_t in_pixels = product(s.in, p.rank), pixels = product(s.out, p.rank);
  const int64_t pitch = s.channels + 3;
  const int64_t in_width = p.input_layout == STN_PLANAR ? s.channels : pitch;
  const int64_t out_width = p.output_layout == STN_PLANAR ? s.channels : pitch;
  // A projective grid without a basis is one of pixel centers.
  const bool centers = p.kind == STN_AFFINE || (p.kind == STN_PROJECTIVE && random() % 2 == 0);
  const int64_t rows = centers ? p.rank + 1 : 5;
  if (p.kind == STN_PROJECTIVE) {
    p.clamp_w = tame && !centers ? 1 : static_cast<int32_t>(random() % 2);
    p.w_min = p.clamp_w == 0 ? std::numeric_limits<float>::quiet_NaN() : 0.5f;  // not read if 0
    for (int d = 0; d < p.rank; ++d) p.offset[d] = ordinary(random) / 4;
  }
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
    // A last row for which w is never near 0.
    if (tame && p.kind == STN_PROJECTIVE && i % theta_count == theta_count - 1) theta.set(i, p.rank + 1.5f);
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
              p.grid_dtype = static_cast<int32_t>(combinations % 2 == 0 ? STN_FP32 : combinations % 3);
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

/// Problems that must be rejected without reading or writing an array.
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
  refuse(STN_ERROR_VALUE, "w_min", [](stn_problem& p) {
    p.kind = STN_PROJECTIVE, p.clamp_w = 1, p.w_min = std::numeric_limits<float>::quiet_NaN();
  });
  refuse(STN_ERROR_VALUE, "offset",
         [](stn_problem& p) { p.kind = STN_PROJECTIVE, p.offset[1] = std::numeric_limits<float>::infinity(); });
  refuse(STN_ERROR_VALUE, "clamp_w", [](stn_problem& p) { p.kind = STN_PROJECTIVE, p.clamp_w = 2; });
  refuse(STN_ERROR_SIZE, "projective rows without a basis",
         [](stn_problem& p) { p.kind = STN_PROJECTIVE, p.basis_rows = 5; });
  refuse(STN_ERROR_SIZE, "rows of a projective volume",
         [](stn_problem& p) { p.kind = STN_PROJECTIVE, p.rank = 3, p.input_size[2] = p.output_size[2] = 1; });
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
  refuse(STN_ERROR_POINTER, "no basis", [](stn_problem& p) { p.kind = STN_BASIS, p.points = 1; });
  const auto with_basis = [&one](stn_problem& p, int kind, int64_t points) {
    p.kind = kind, p.basis = &one, p.points = points;
  };
  refuse(STN_ERROR_POINTS, "no points", [&](stn_problem& p) { with_basis(p, STN_BASIS, 0); });
  refuse(STN_ERROR_POINTS, "a short basis", [&](stn_problem& p) {
    with_basis(p, STN_BASIS, 10);
    p.output_size[0] = p.output_size[1] = 64;
  });
  refuse(STN_ERROR_POINTS, "a long basis", [&](stn_problem& p) { with_basis(p, STN_BASIS, 2); });
  refuse(STN_ERROR_POINTS, "a projective basis", [&](stn_problem& p) { with_basis(p, STN_PROJECTIVE, 3); });
  refuse(STN_ERROR_POINTS, "an affine basis", [&](stn_problem& p) { with_basis(p, STN_AFFINE, 3); });
  refuse(STN_ERROR_POINTS, "a grid of another size", [](stn_problem& p) { p.kind = STN_GRID, p.points = 9; });
  refuse(STN_ERROR_VALUE, "grid dtype", [](stn_problem& p) { p.kind = STN_GRID, p.points = 1, p.grid_dtype = 3; });
  const auto with_lattice = [&one](stn_problem& p) {
    p.kind = STN_TENSOR_PRODUCT, p.rows = p.columns = &one;
    for (int64_t& length : p.lattice) length = 1;
    p.basis_rows = 1;
  };
  stn_problem product = good;
  with_lattice(product);
  expect(stn_check(&product) == STN_OK, "a good lattice", product);
  refuse(STN_ERROR_POINTER, "no rows", [&](stn_problem& p) { with_lattice(p), p.rows = nullptr; });
  refuse(STN_ERROR_POINTER, "no columns", [&](stn_problem& p) { with_lattice(p), p.columns = nullptr; });
  refuse(STN_ERROR_SIZE, "an empty lattice", [&](stn_problem& p) { with_lattice(p), p.lattice[1] = p.basis_rows = 0; });
  refuse(STN_ERROR_SIZE, "another lattice", [&](stn_problem& p) { with_lattice(p), p.lattice[2] = 2; });
  refuse(STN_ERROR_SIZE, "planes of an image", [&](stn_problem& p) {
    with_lattice(p);
    p.lattice[0] = p.basis_rows = 2;
  });
  refuse(STN_ERROR_SIZE, "a huge lattice", [&](stn_problem& p) {
    with_lattice(p);
    p.lattice[1] = p.lattice[2] = int64_t{1} << 40;
  });
  const auto with_taps = [&one](stn_problem& p) {
    static const int32_t index = 0;
    p.kind = STN_LATTICE, p.basis = &one, p.index = &index, p.taps = p.points = 1;
  };
  stn_problem taps = good;
  with_taps(taps);
  expect(stn_check(&taps) == STN_OK, "good taps", taps);
  refuse(STN_ERROR_SIZE, "no taps", [&](stn_problem& p) { with_taps(p), p.taps = 0; });
  refuse(STN_ERROR_SIZE, "65 taps", [&](stn_problem& p) { with_taps(p), p.taps = 65; });
  refuse(STN_ERROR_POINTER, "no index", [&](stn_problem& p) { with_taps(p), p.index = nullptr; });
  refuse(STN_ERROR_POINTS, "weights of another size", [&](stn_problem& p) { with_taps(p), p.points = 2; });
  expect(stn_check(nullptr) == STN_ERROR_POINTER, "no problem", good);
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
  std::mt19937 random(7);
  // Fewer and more pixels than 64, from which on the affine CUDA kernel is used.
  const Shape images[] = {{2, 3, {5, 7, 0}, {6, 11, 0}}, {1, 21, {1, 1, 0}, {3, 3, 0}}, {1, 1, {1, 6, 0}, {1, 137, 0}},
                          {1, 2, {6, 1, 0}, {70, 1, 0}}, {3, 1, {2, 2, 0}, {9, 33, 0}}, {1, 70, {3, 4, 0}, {17, 19, 0}},
                          {2, 5, {1, 1, 0}, {8, 8, 0}},  {3, 2, {4, 3, 0}, {7, 9, 0}},  {0, 2, {3, 3, 0}, {2, 2, 0}}};
  const Shape volumes[] = {{2, 3, {3, 5, 4}, {2, 4, 5}},
                           {2, 1, {3, 5, 4}, {5, 6, 7}},
                           {1, 1, {1, 1, 1}, {2, 3, 3}},
                           {1, 9, {2, 1, 6}, {5, 1, 7}}};
  for (const Shape& shape : images) run_all(shape, 2, random);
  for (const Shape& shape : volumes) run_all(shape, 3, random);
  if (device) {
    run_large(random);
    if (device->stream() == nullptr) run_far_corner(random);
    expect(nearest.off * 200 <= nearest.values, "nearest: the CPU kernels' values", stn_problem{});
    std::printf("compared: %lld values; nearest: %lld of %lld off\n", static_cast<long long>(interpolated.values),
                static_cast<long long>(nearest.off), static_cast<long long>(nearest.values));
  } else {
    run_together();
  }
  refuse_nonsense();
  std::printf("%s: %lld checks, %d failed\n", device ? "cuda" : stn_cpu_isa(), static_cast<long long>(checks),
              failures);
  return failures == 0 ? 0 : 1;
}
