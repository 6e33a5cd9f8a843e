/// \file register.cpp
/// \brief libstn_plugins_register.so: registers the creators of libstn_plugins.so when it is loaded.
///
/// Triton and onnxruntime dlopen a plugin library and expect it to register itself; trtexec and load_library call
/// getCreators and reject a library whose creators are already registered. Hence this second library. It is in the same
/// folder as libstn_plugins.so and links neither that library nor TensorRT: it uses the TensorRT that the process has
/// loaded. Set STN_LOG to log its actions to stderr.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../abi/tensorrt.h"

namespace {

constexpr const char* kPlugins = "libstn_plugins.so";

// A process has loaded one of these; the lean runtime has its own registry.
constexpr const char* kRuntimes[] = {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11",
                                     "libnvinfer_lean.so.10"};

void log(const std::string& line) {
  const char* wanted = std::getenv("STN_LOG");
  if (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, "0") == 0) return;
  std::fprintf(stderr, "stn: register: %s\n", line.c_str());
}

/// \brief Slot of IPluginRegistry::registerCreator(IPluginCreatorInterface&, namespace); -1 if it is unknown.
///
/// TensorRT 11 removed the four preceding functions for IPluginCreator.
int slot_of_register_creator(int32_t version) {
  switch (version / 10000) {
    case 10:
      return 12;
    case 11:
      return 8;
    default:
      return -1;
  }
}

/// \brief The path of libstn_plugins.so in the folder of this library.
std::string plugins_path() {
  Dl_info here;
  if (dladdr(reinterpret_cast<void*>(&plugins_path), &here) == 0 || here.dli_fname == nullptr) return kPlugins;
  const std::string path = here.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? kPlugins : path.substr(0, slash + 1) + kPlugins;
}

template <typename F>
F* symbol(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}

void register_in(void* runtime, const std::string& name) {
  auto* get_version = symbol<int32_t()>(runtime, "getInferLibVersion");
  auto* get_registry = symbol<void*()>(runtime, "getPluginRegistry");
  const int32_t version = get_version == nullptr ? 0 : get_version();
  const int slot = slot_of_register_creator(version);
  void* registry = get_registry == nullptr ? nullptr : get_registry();
  if (slot < 0 || registry == nullptr) {
    log(name + " has version " + std::to_string(version) + "; only TensorRT 10 and 11 are supported");
    return;
  }
  const std::string path = plugins_path();
  void* plugins = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (plugins == nullptr) {
    log(dlerror());
    return;
  }
  auto* get_creators = symbol<nvinfer1::IPluginCreatorInterface* const*(int32_t&)>(plugins, "getCreators");
  if (get_creators == nullptr) {
    log(path + " does not export getCreators");
    return;
  }
  void** table = *static_cast<void***>(registry);
  auto* add = reinterpret_cast<bool (*)(void*, nvinfer1::IPluginCreatorInterface*, const char*)>(table[slot]);
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = get_creators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    const bool done = add(registry, creators[i], creator->getPluginNamespace());
    log(std::string(creator->getPluginName()) + (done ? " registered in " : " is already registered in ") + name);
  }
}

__attribute__((constructor)) void register_all() {
  bool found = false;
  for (const char* name : kRuntimes) {
    // Only a library that the process has already loaded; its symbols may be local.
    if (void* runtime = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) {
      found = true;
      register_in(runtime, name);
      dlclose(runtime);
    }
  }
  if (!found) log("no TensorRT 10 or 11 is loaded in this process");
}

}  // namespace
