/// \file host_checks.hpp
/// \brief What the hosts share that run the library without a runtime: the library, counted checks, expected outputs.
#ifndef STN_TESTS_HOST_CHECKS_HPP_
#define STN_TESTS_HOST_CHECKS_HPP_

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "stn/stn.h"
#include "tensorrt_cases.hpp"

namespace {

using namespace cases;

int checks = 0;
int failures = 0;

#define CHECK(condition, where)                                                        \
  do {                                                                                 \
    ++checks;                                                                          \
    if (!(condition)) {                                                                \
      ++failures;                                                                      \
      std::printf("FAILED %s:%d %s  (%s)\n", __FILE__, __LINE__, #condition, (where)); \
    }                                                                                  \
  } while (false)

struct Library {
  explicit Library(const char* path) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(2);
    }
  }
  template <typename F>
  F* get(const char* name) const {
    void* symbol = dlsym(handle, name);
    if (symbol == nullptr) {
      std::fprintf(stderr, "the library does not export %s\n", name);
      std::exit(2);
    }
    return reinterpret_cast<F*>(symbol);
  }
  void* handle;
};

inline int32_t dtype_of(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kFLOAT ? STN_FP32 : type == nvinfer1::DataType::kHALF ? STN_FP16 : STN_BF16;
}

/// \brief The output of stn_run_cpu for a case, with a problem that is filled in from the case alone.
inline std::vector<char> expected(const Library& library, const Case& c,
                                  const std::vector<nvinfer1::PluginTensorDesc>& d,
                                  const std::vector<std::vector<char>>& data) {
  std::vector<char> out(byte_size(d.back()));
  stn_problem p;
  std::memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.rank = c.rank;
  p.kind = c.kind;
  p.mode = c.mode;
  p.padding = c.padding;
  p.align_corners = c.align_corners;
  p.dtype = dtype_of(c.type);
  p.grid_dtype = reads_grid(c) ? dtype_of(d[1].type) : STN_FP32;
  p.input_layout = c.input_format == nvinfer1::TensorFormat::kLINEAR ? STN_PLANAR : STN_CHANNELS_LAST;
  p.output_layout = c.output_format == nvinfer1::TensorFormat::kLINEAR ? STN_PLANAR : STN_CHANNELS_LAST;
  p.batch = p.theta_batch = p.input_batch = d[0].dims.d[0];
  p.channels = c.channels;
  for (int32_t i = 0; i < c.rank; ++i) {
    p.input_size[i] = d[0].dims.d[i + 2];
    p.output_size[i] = output_size(c)[static_cast<size_t>(i)];
  }
  p.points = 1;
  for (int32_t i = 0; i < c.rank; ++i) p.points *= p.output_size[i];
  p.basis_rows = reads_grid(c) ? 0 : columns(c);
  const auto floats = [&data](size_t i) { return reinterpret_cast<const float*>(data[i].data()); };
  if (c.kind == STN_TENSOR_PRODUCT) {
    const std::vector<int64_t> sizes = lattice(c);
    std::copy(sizes.begin(), sizes.end(), p.lattice);
    p.points = 0;
    p.planes = floats(2);
    p.rows = floats(3);
    p.columns = floats(4);
  }
  if (c.kind == STN_LATTICE) {
    p.taps = kTaps;
    p.index = reinterpret_cast<const int32_t*>(data[2].data());
    p.basis = floats(3);
  }
  if (c.creator == kProjective2) {
    const std::vector<float> moves = offset(c);
    p.clamp_w = 1;
    p.w_min = kLeast;
    std::copy(moves.begin(), moves.end(), p.offset);
  }
  p.input = data[0].data();
  p.theta = data[1].data();
  if (c.kind == STN_BASIS || c.kind == STN_PROJECTIVE) p.basis = floats(2);
  p.output = out.data();
  const int status = library.get<int(const stn_problem*, int)>("stn_run_cpu")(&p, 1);
  CHECK(status == STN_OK, c.name);
  return out;
}

/// \brief Checks the values of an output.
inline void check_close(const Case& c, const std::vector<char>& found, const std::vector<char>& wanted) {
  const float tolerance = c.type == DataType::kFLOAT ? 2e-5F : c.type == DataType::kHALF ? 2e-3F : 1.6e-2F;
  const size_t count = wanted.size() / element_size(c.type);
  size_t wrong = found.size() == wanted.size() ? 0 : count;
  for (size_t i = 0; wrong != count && i < count; ++i) {
    const float difference = std::fabs(value_at(found, i, c.type) - value_at(wanted, i, c.type));
    wrong += difference <= tolerance ? 0 : 1;  // NaN counts as wrong
  }
  // A nearest sample at an exact tie may differ on another processor.
  CHECK(wrong <= (c.mode == STN_NEAREST ? count / 100 : 0), c.name);
}

}  // namespace

#endif  // STN_TESTS_HOST_CHECKS_HPP_
