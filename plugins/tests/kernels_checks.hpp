/// \file kernels_checks.hpp
/// \brief What the kernels' test counts, and the comparison of the CUDA kernels with the CPU's.
#ifndef STN_TESTS_KERNELS_CHECKS_HPP_
#define STN_TESTS_KERNELS_CHECKS_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "device_memory.hpp"
#include "kernels_arrays.hpp"
#include "stn/stn.h"

namespace {

int failures = 0;
int64_t checks = 0;
int64_t combinations = 0;
int64_t every = 1;
int64_t shift = 0;               // elements between a buffer's start on the device and the array in it
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

/// Runs a problem on copies of its arrays on the device, and copies the output back.
int run_on_device(stn_problem p, const Array& input, const Array& theta, const Array& basis, const Lattice& lattice,
                  Array* output) {
  std::vector<void*> buffers;
  const Array* arrays[] = {&input, &theta, &basis, output, &lattice.planes, &lattice.rows, &lattice.columns};
  for (const Array* array : arrays) {
    std::vector<char> bytes(static_cast<size_t>(shift * array->element_size()));
    bytes.insert(bytes.end(), array->bytes.get(), array->bytes.get() + array->size());
    buffers.push_back(device->upload(bytes));
  }
  const auto start = [&](size_t i) { return static_cast<char*>(buffers[i]) + shift * arrays[i]->element_size(); };
  const auto* bytes = reinterpret_cast<const char*>(lattice.index.data());
  buffers.push_back(device->upload(std::vector<char>(bytes, bytes + 4 * lattice.index.size())));
  p.input = start(0);
  p.theta = start(1);
  if (p.basis != nullptr) p.basis = reinterpret_cast<const float*>(start(2));
  if (p.planes != nullptr) p.planes = reinterpret_cast<const float*>(start(4));
  p.rows = reinterpret_cast<const float*>(start(5));
  p.columns = reinterpret_cast<const float*>(start(6));
  p.index = static_cast<const int32_t*>(buffers[7]);
  p.output = start(3);
  const int status = stn_run_cuda(&p, device->stream());
  const std::vector<char> answer = device->download(p.output, output->size());
  std::copy(answer.begin(), answer.end(), output->bytes.get());
  for (void* buffer : buffers) device->release(buffer);
  return status;
}

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

}  // namespace

#endif  // STN_TESTS_KERNELS_CHECKS_HPP_
