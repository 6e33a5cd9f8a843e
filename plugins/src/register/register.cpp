/// \file register.cpp
/// \brief libstn_plugins_register.so: registers the creators of libstn_plugins.so when it is loaded.
///
/// Triton and onnxruntime dlopen a plugin library and expect it to register itself; trtexec and load_library want
/// getCreators and refuse a library whose creators are registered already. Hence this second library. It lies beside
/// libstn_plugins.so and links neither it nor TensorRT: whichever TensorRT the process has loaded is the one that is
/// asked. Set STN_LOG to see on stderr what it did.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../abi/tensorrt.h"

namespace {

constexpr const char* kPlugins = "libstn_plugins.so";

// A process has one of these, or the lean runtime, which keeps a registry of its own.
constexpr const char* kRuntimes[] = {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11",
                                     "libnvinfer_lean.so.10"};

void log(const std::string& line) {
  const char* wanted = std::getenv("STN_LOG");
  if (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, "0") == 0) return;
  std::fprintf(stderr, "stn: register: %s\n", line.c_str());
}

/// \brief Slot of IPluginRegistry::registerCreator(IPluginCreatorInterface&, namespace); -1 where it is not known.
///
/// TensorRT 11 dropped the four functions for IPluginCreator that stood before it.
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

/// \brief libstn_plugins.so in the folder that this library was loaded from.
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
    log(name + " has version " + std::to_string(version) + "; only TensorRT 10 and 11 are known");
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
    log(path + " exports no getCreators");
    return;
  }
  void** table = *static_cast<void***>(registry);
  auto* add = reinterpret_cast<bool (*)(void*, nvinfer1::IPluginCreatorInterface*, const char*)>(table[slot]);
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = get_creators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    const bool done = add(registry, creators[i], creator->getPluginNamespace());
    log(std::string(creator->getPluginName()) + (done ? " registered in " : " is registered already in ") + name);
  }
}

__attribute__((constructor)) void register_all() {
  bool found = false;
  for (const char* name : kRuntimes) {
    // Only what the process has loaded already; its symbols need not be visible to everybody.
    if (void* runtime = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) {
      found = true;
      register_in(runtime, name);
      dlclose(runtime);
    }
  }
  if (!found) log("no TensorRT 10 or 11 is loaded in this process");
}

}  // namespace
