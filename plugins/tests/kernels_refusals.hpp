/// \file kernels_refusals.hpp
/// \brief Problems that the C interface must reject.
#ifndef STN_TESTS_KERNELS_REFUSALS_HPP_
#define STN_TESTS_KERNELS_REFUSALS_HPP_

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels_checks.hpp"
#include "stn/stn.h"

namespace {

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
  refuse(STN_ERROR_VALUE, "offset along z", [](stn_problem& p) {
    p.kind = STN_PROJECTIVE, p.rank = 3, p.basis_rows = 4, p.input_size[2] = p.output_size[2] = 1;
    p.offset[2] = std::numeric_limits<float>::quiet_NaN();
  });
  refuse(STN_ERROR_SIZE, "a projective basis without rows",
         [&one](stn_problem& p) { p.kind = STN_PROJECTIVE, p.basis = &one, p.points = 1, p.basis_rows = 0; });
  refuse(STN_ERROR_SIZE, "negative rows of a projective basis",
         [&one](stn_problem& p) { p.kind = STN_PROJECTIVE, p.basis = &one, p.points = 1, p.basis_rows = -3; });
  refuse(STN_ERROR_OVERFLOW, "too many rows of a projective basis", [&one](stn_problem& p) {
    p.kind = STN_PROJECTIVE, p.basis = &one, p.points = 1, p.basis_rows = int64_t{1} << 40;
  });
  refuse(STN_ERROR_SIZE, "theta of another batch", [&one](stn_problem& p) {
    p.kind = STN_PROJECTIVE, p.basis = &one, p.points = 1, p.batch = p.input_batch = 3, p.theta_batch = 2;
  });
  refuse(STN_ERROR_POINTS, "a projective basis of no points",
         [&one](stn_problem& p) { p.kind = STN_PROJECTIVE, p.basis = &one, p.points = 0; });
  stn_problem nothing = good;
  nothing.kind = STN_PROJECTIVE, nothing.basis_rows = 5, nothing.output_size[1] = 0;
  expect(stn_check(&nothing) == STN_OK, "no points of any basis", nothing);
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

/// GPUs that cannot run the kernels, with CUDA's reason. `device` is the first GPU; the one of tests/cuda_on_cpu has no
/// stream, and beside it a GPU that the library has no code for.
void refuse_devices() {
  const auto says = [](const char* words) { return std::strstr(stn_status_text(STN_ERROR_CUDA), words) != nullptr; };
  const stn_problem none{};
  if (device) expect(stn_cuda_usable(0) == 1, "a GPU", none);
  for (int absent : {-1, 99}) {
    expect(stn_cuda_usable(absent) == 0, "no such GPU", none);
    expect(says(stn_has_cuda() ? "CUDA: " : "was built without CUDA"), "the reason", none);
  }
  if (device && device->stream() == nullptr) {
    expect(stn_cuda_usable(1) == 0, "a GPU without code", none);
    expect(says("(cudaErrorNoKernelImageForDevice)"), "CUDA's name", none);
    expect(says("no code for GPU 1, which is sm72: stn-infer plugin build --arch sm72"), "what to do", none);
    expect(stn_cuda_usable(0) == 1, "the current GPU is the same", none);
  }
}

}  // namespace

#endif  // STN_TESTS_KERNELS_REFUSALS_HPP_
