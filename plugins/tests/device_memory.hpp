/// \file device_memory.hpp
/// \brief Buffers for the tests, in host memory or on a GPU through the CUDA driver, which is loaded at run time.
#ifndef STN_TESTS_DEVICE_MEMORY_HPP_
#define STN_TESTS_DEVICE_MEMORY_HPP_

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

/// \brief Where plugins compute.
class Device {
 public:
  virtual ~Device() = default;
  virtual void* upload(const std::vector<char>& bytes) = 0;
  virtual std::vector<char> download(void* buffer, size_t size) = 0;
  virtual void release(void* buffer) = 0;
  virtual void* stream() = 0;
  /// Begins to capture what is launched on the stream, in CUDA's default mode, which forbids most other calls.
  virtual void begin_capture() = 0;
  /// Ends the capture and runs the graph.
  virtual void run_captured() = 0;
};

class HostDevice final : public Device {
 public:
  void* upload(const std::vector<char>& bytes) override {
    void* buffer = std::malloc(bytes.size() + 1);
    if (!bytes.empty()) std::memcpy(buffer, bytes.data(), bytes.size());
    return buffer;
  }
  std::vector<char> download(void* buffer, size_t size) override {
    const char* bytes = static_cast<const char*>(buffer);
    return std::vector<char>(bytes, bytes + size);
  }
  void release(void* buffer) override { std::free(buffer); }
  void* stream() override { return nullptr; }
  void begin_capture() override {}
  void run_captured() override {}
};

/// \brief The first GPU, through libcuda; any failure ends the program with exit code 2.
class CudaDevice final : public Device {
 public:
  CudaDevice() : driver_(dlopen("libcuda.so.1", RTLD_NOW)) {
    if (driver_ == nullptr) fail("libcuda.so.1 cannot be loaded", 0);
    int device = 0;
    void* context = nullptr;
    run("cuInit", 0U);
    run("cuDeviceGet", &device, 0);
    run("cuDevicePrimaryCtxRetain", &context, device);
    run("cuCtxSetCurrent", context);
    run("cuStreamCreate", &stream_, 1U /* CU_STREAM_NON_BLOCKING */);
    run("cuMemAlloc_v2", &kept_, size_t{1});  // else the driver may release its block of memory after each problem
  }
  void* upload(const std::vector<char>& bytes) override {
    unsigned long long address = 0;
    run("cuMemAlloc_v2", &address, bytes.size() + 1);
    if (!bytes.empty()) run("cuMemcpyHtoD_v2", address, static_cast<const void*>(bytes.data()), bytes.size());
    run("cuCtxSynchronize");  // a copy from pageable memory may be in flight, and the stream does not wait for it
    return reinterpret_cast<void*>(address);
  }
  std::vector<char> download(void* buffer, size_t size) override {
    std::vector<char> bytes(size);
    run("cuStreamSynchronize", stream_);
    if (size != 0) {
      run("cuMemcpyDtoH_v2", static_cast<void*>(bytes.data()), reinterpret_cast<unsigned long long>(buffer), size);
    }
    return bytes;
  }
  void release(void* buffer) override { run("cuMemFree_v2", reinterpret_cast<unsigned long long>(buffer)); }
  void* stream() override { return stream_; }
  void begin_capture() override { run("cuStreamBeginCapture_v2", stream_, 0 /* CU_STREAM_CAPTURE_MODE_GLOBAL */); }
  void run_captured() override {
    void *graph = nullptr, *executable = nullptr;
    run("cuStreamEndCapture", stream_, &graph);
    run("cuGraphInstantiateWithFlags", &executable, graph, 0ULL);
    run("cuGraphLaunch", executable, stream_);
    run("cuStreamSynchronize", stream_);
    run("cuGraphExecDestroy", executable);
    run("cuGraphDestroy", graph);
  }

 private:
  [[noreturn]] static void fail(const char* what, int status) {
    std::fprintf(stderr, "%s (CUDA driver status %d)\n", what, status);
    std::exit(2);
  }

  template <typename... Args>
  void run(const char* function, Args... args) {
    auto call = reinterpret_cast<int (*)(Args...)>(dlsym(driver_, function));
    const int status = call == nullptr ? -1 : call(args...);
    if (status != 0) fail(function, status);
  }

  void* driver_;
  void* stream_ = nullptr;
  unsigned long long kept_ = 0;
};

#endif  // STN_TESTS_DEVICE_MEMORY_HPP_
