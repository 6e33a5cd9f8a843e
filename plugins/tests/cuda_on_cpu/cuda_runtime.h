/// \file cuda_runtime.h
/// \brief Replaces CUDA's header of this name, so that a C++ compiler builds the CUDA kernels for the CPU.
///
/// A launch runs every thread of every block sequentially, on the caller's thread. That is equivalent for these
/// kernels, because their threads are independent: no barriers, atomics or warp intrinsics, and in shared memory only a
/// thread's own values. With sanitizers, it finds errors in indices, bounds and arithmetic; it does not model
/// performance. It contains only what the kernels use; anything else does not compile.
#ifndef STN_TESTS_CUDA_RUNTIME_H_
#define STN_TESTS_CUDA_RUNTIME_H_

// Internal linkage: the CPU kernels' copies of these functions are compiled without STN_FMA.
#undef STN_HD
#define STN_HD static inline
// vfma rounds once, as on the device, on every processor.
#define STN_FMA

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static thread_local  // only for threads' own values

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

using std::max;
using std::min;

template <class T>
T __ldg(const T* from) {
  return *from;
}

/// a + b, rounded towards minus infinity.
inline float __fadd_rd(float a, float b) {
  // The exact error of the sum rounded to nearest (Knuth); volatile, so that no step is simplified.
  volatile float sum = a + b, b_part = sum - a, a_lost = a - (sum - b_part), b_lost = b - b_part;
  const float lost = a_lost + b_lost;
  if (sum == 0.0f && signbit(a) != signbit(b)) return -0.0f;
  return lost < 0.0f ? nextafterf(sum, -INFINITY) : sum;  // NaN (a sum that is not finite) compares false
}

// ---------------------------------------------------------------------------------------------------------- runtime

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorStreamCaptureUnsupported = 900
};
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    default:
      return "cudaSuccess";
  }
}
inline const char* cudaGetErrorString(cudaError_t) { return "a call that CUDA would reject"; }

// Device 0 runs the kernels, device 1 is a GPU that the library has no code for, and there is no other.
inline thread_local int current_device = 0;
inline cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 7 : 2;
  return cudaSuccess;
}

// As in CUDA, a capture in another thread or stream may be in progress, and then kernels are loaded in mode relaxed
// only.
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
inline thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

struct cudaFuncAttributes {};
template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)(Parameters...)) {
  if (capture_mode != cudaStreamCaptureModeRelaxed) return cudaErrorStreamCaptureUnsupported;
  return current_device == 0 ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

#ifdef STN_RECORD_LAUNCHES
/// Called instead of a launch, with the kernel's address, the sizes of grid and block, and the parameters in CUDA's
/// layout. For benchmarks/sass, which executes the GPU's machine code.
extern "C" __attribute__((visibility("default"))) inline void (*stn_record_launch)(const void* kernel, const dim3* grid,
                                                                                   const dim3* block, const char* bytes,
                                                                                   size_t count) = nullptr;

template <class... Parameters>
void record(void (*kernel)(Parameters...), const dim3& grid, const dim3& block, const Parameters&... parameters) {
  char bytes[4096] = {};
  size_t at = 0;
  const auto put = [&](const auto& parameter) {
    at = (at + alignof(decltype(parameter)) - 1) / alignof(decltype(parameter)) * alignof(decltype(parameter));
    std::copy_n(reinterpret_cast<const char*>(&parameter), sizeof parameter, bytes + at);
    at += sizeof parameter;
  };
  (put(parameters), ...);
  stn_record_launch(reinterpret_cast<const void*>(kernel), &grid, &block, bytes, at);
}
#endif

/// Runs a kernel; the limits on the sizes of grid and block are those of all GPUs.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const bool fits = grid.x - 1 < 0x7fffffffu && grid.y - 1 < 65535u && grid.z - 1 < 65535u && block.x - 1 < 1024u &&
                    block.y - 1 < 1024u && block.z - 1 < 64u && block.x * block.y * block.z <= 1024u;
  if (!fits) return cudaErrorInvalidConfiguration;
  if (capture_mode != cudaStreamCaptureModeRelaxed) return cudaErrorStreamCaptureUnsupported;
#ifdef STN_RECORD_LAUNCHES
  record<Parameters...>(kernel, grid, block, arguments...);
  return cudaSuccess;
#endif
  gridDim = grid;
  blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(Parameters(arguments)...);
  return cudaSuccess;
}

#endif  // STN_TESTS_CUDA_RUNTIME_H_
