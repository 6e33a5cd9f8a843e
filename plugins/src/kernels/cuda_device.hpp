/// \file cuda_device.hpp
/// \brief CUDA's errors as text, loading kernels during a stream capture, and whether a GPU can run the kernels.
#ifndef STN_KERNELS_CUDA_DEVICE_HPP_
#define STN_KERNELS_CUDA_DEVICE_HPP_

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "stn/stn.h"

namespace stn {
namespace {

thread_local char last_error[320] = "CUDA: no error yet on this thread";

/// Keeps the text of CUDA's error, also prints it to stderr if STN_LOG is set, and returns the status for it.
int check(cudaError_t error, const char* file, int line) {
  if (error == cudaSuccess) return STN_OK;
  const char* const name = cudaGetErrorName(error);
  const int length = std::snprintf(last_error, sizeof last_error, "CUDA: %s (%s)", cudaGetErrorString(error), name);
  int device = 0, major = 0, minor = 0;
  const bool no_image = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  if (no_image && cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess) {
    std::snprintf(last_error + length, sizeof last_error - static_cast<size_t>(length),
                  "; this libstn_plugins has no code for GPU %d, which is sm%d%d: stn-infer plugin build --arch sm%d%d",
                  device, major, minor, major, minor);
  }
  if (std::getenv("STN_LOG") != nullptr) std::fprintf(stderr, "stn: %s:%d: %s\n", file, line, last_error);
  return STN_ERROR_CUDA;
}
#define STN_CHECK_CUDA(call) check((call), __FILE__, __LINE__)

/// While it exists, this thread may do what a stream capture in CUDA's default mode forbids: the first launch of a
/// kernel loads it, which is not a part of the graph.
class LoadsDuringCapture {
 public:
  LoadsDuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~LoadsDuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  LoadsDuringCapture(const LoadsDuringCapture&) = delete;
  LoadsDuringCapture& operator=(const LoadsDuringCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Does nothing; it is in the same images as the other kernels.
__global__ void probe_kernel() {}

/// Whether a kernel can be loaded on a device; if not, `last_error` has the reason. The current device stays.
bool loads_on(int device) {
  const LoadsDuringCapture allowed;
  int current = 0;
  if (STN_CHECK_CUDA(cudaGetDevice(&current)) != STN_OK) return false;
  // Setting the current device again could create a context there that nobody has asked for.
  if (device != current && STN_CHECK_CUDA(cudaSetDevice(device)) != STN_OK) return false;
  cudaFuncAttributes attributes{};
  const bool loaded = STN_CHECK_CUDA(cudaFuncGetAttributes(&attributes, probe_kernel)) == STN_OK;
  if (device != current) cudaSetDevice(current);
  return loaded;
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_DEVICE_HPP_
