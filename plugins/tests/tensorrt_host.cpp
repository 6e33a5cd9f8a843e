/// \file tensorrt_host.cpp
/// \brief Runs the plugins of a built library through the whole TensorRT lifecycle, without TensorRT.
///
///     tensorrt_host LIBRARY          computes in host memory
///     tensorrt_host LIBRARY --cuda   computes on the first GPU
///
/// The output of enqueue is compared with stn_run_cpu on a problem that is filled in here, not by the adapter. Exit
/// code 0: all checks passed, 1: some failed, 2: the test could not run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../abi/tensorrt.h"
#include "device_memory.hpp"
#include "host_checks.hpp"
#include "stn/stn.h"
#include "tensorrt_cases.hpp"
#include "tensorrt_formats.hpp"
#include "tensorrt_slots.hpp"

using namespace nvinfer1;
using namespace cases;
using slots::call;

namespace {

bool is_interface(void* object, const char* kind) {
  const auto found = call<InterfaceInfo>(object, slots::kInfo);
  return std::strcmp(found.kind, kind) == 0 && found.major == 1 && found.minor == 0 &&
         call<int32_t>(object, slots::kLanguage) == 0;
}

bool same(const char* a, const char* b) { return a != nullptr && std::strcmp(a, b) == 0; }

void check_creator(void* creator, const char* name, const char* name_space, const char* version = "1") {
  CHECK(is_interface(creator, "PLUGIN CREATOR_V3ONE"), name);
  CHECK(same(call<const char*>(creator, slots::kCreatorName), name), name);
  CHECK(same(call<const char*>(creator, slots::kCreatorVersion), version), name);
  CHECK(same(call<const char*>(creator, slots::kCreatorNamespace), name_space), name);
}

void* create(void* creator, const PluginFieldCollection* fields, TensorRTPhase phase) {
  return call<void*>(creator, slots::kCreate, "node", fields, phase);
}

void check_refusals(void* const* creators) {
  const auto refused = [&](int creator, Attributes attributes, const char* what) {
    CHECK(create(creators[creator], attributes.collection(), TensorRTPhase::kBUILD) == nullptr, what);
  };
  const auto with = [&](int index, const char* name, const std::string& text) {
    Attributes result = attributes(cases::all()[static_cast<size_t>(index)]);
    result.word(name, text);
    return result;
  };
  refused(0, {}, "grid_shape missing");
  refused(0, with(0, "mode", "lanczos"), "unknown mode");
  refused(0, with(0, "mode", ""), "empty mode");
  refused(0, with(0, "padding_mode", "wrap"), "unknown padding");
  refused(0, with(0, "kind", "projective"), "unknown kind");
  refused(0, with(0, "align_corners", "1"), "align_corners as text");
  for (const auto& shape : std::vector<std::vector<int32_t>>{
           {}, {0, 5, 7}, {0, 5, 7, 3}, {1, 5, 7, 2}, {0, -5, 7, 2}, {0, 0, 7, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 8}}) {
    Attributes attributes;
    attributes.integers("grid_shape", shape);
    refused(0, std::move(attributes), "bad grid_shape");
  }
  Attributes volume;
  volume.integers("grid_shape", {0, 3, 4, 5, 3});
  refused(1, std::move(volume), "projective volume");
  const auto quotient = [](const std::vector<float>& w_min, const std::vector<float>& moves) {
    Attributes attributes;
    attributes.integers("grid_shape", {0, 3, 4, 5, 3});
    attributes.floats("w_min", w_min);
    attributes.floats("offset", moves);
    return attributes;
  };
  const float nan = std::nanf(""), inf = INFINITY;
  refused(kProjective2, quotient({nan}, {0, 0, 0}), "w_min NaN");
  refused(kProjective2, quotient({}, {0, 0, 0}), "no w_min");
  refused(kProjective2, quotient({1, 1}, {0, 0, 0}), "two w_min");
  refused(kProjective2, quotient({1}, {0, 0}), "an offset of another rank");
  refused(kProjective2, quotient({1}, {0, 0, 0, 0}), "a long offset");
  refused(kProjective2, quotient({1}, {}), "an empty offset");
  refused(kProjective2, quotient({1}, {0, nan, 0}), "offset NaN");
  refused(kProjective2, quotient({1}, {0, 0, inf}), "offset infinite");
  Attributes integers;
  integers.integers("grid_shape", {0, 3, 4, 2});
  integers.integers("w_min", {1});
  refused(kProjective2, std::move(integers), "an integer w_min");
  PluginFieldCollection broken{3, nullptr};
  CHECK(create(creators[0], &broken, TensorRTPhase::kBUILD) == nullptr, "a count without fields");
  CHECK(create(creators[0], nullptr, TensorRTPhase::kBUILD) == nullptr, "no collection");
  // A field that a node lacks has its default.
  Attributes plain;
  plain.integers("grid_shape", {0, 3, 4, 5, 3});
  void* unbounded = create(creators[kProjective2], plain.collection(), TensorRTPhase::kBUILD);
  CHECK(unbounded != nullptr, "no w_min and no offset");
  if (unbounded != nullptr) call<void>(unbounded, slots::kDelete);
  // ONNX opset 20's names, 64-bit integers and a NUL included in the length are accepted.
  Attributes fine;
  fine.word("mode", std::string("linear\0", 7));
  fine.long_integers("grid_shape", {0, 5, 7, 2});
  void* plugin = create(creators[0], fine.collection(), TensorRTPhase::kBUILD);
  CHECK(plugin != nullptr, "linear, 64-bit grid_shape");
  if (plugin != nullptr) call<void>(plugin, slots::kDelete);
}

void check_build(const Case& c, void* build) {
  CHECK(is_interface(build, "PLUGIN_V3ONE_BUILD"), c.name);
  CHECK(call<int32_t>(build, slots::kOutputs) == 1, c.name);
  CHECK(call<int32_t>(build, slots::kTactics) == 0, c.name);
  CHECK((call<int32_t>(build, slots::kValidTactics, static_cast<int32_t*>(nullptr), 0) == 0), c.name);
  CHECK(call<int32_t>(build, slots::kFormatLimit) == 100, c.name);
  CHECK(call<const char*>(build, slots::kTimingId) != nullptr, c.name);
  CHECK(call<const char*>(build, slots::kMetadata) != nullptr, c.name);

  const int32_t inputs = inputs_of(c);
  const std::vector<int64_t> image_size = c.rank == 2 ? std::vector<int64_t>{6, 9} : std::vector<int64_t>{4, 5, 6};
  std::vector<DynamicPluginTensorDesc> all;
  std::vector<DataType> types;
  for (const PluginTensorDesc& d : descs(c, -1, image_size)) {
    all.push_back(dynamic(d));
    types.push_back(d.type);
  }
  DataType out_type{};
  CHECK((call<int32_t>(build, slots::kOutputTypes, &out_type, 1, types.data(), inputs) == 0), c.name);
  CHECK(out_type == c.type, c.name);

  // The batch is an unknown dimension, which must be passed through; every other one must be a constant.
  std::vector<std::unique_ptr<HostDimension>> dimensions;
  std::vector<DimsExprs> shapes;
  for (const DynamicPluginTensorDesc& d : all) {
    DimsExprs shape{};
    shape.nbDims = d.desc.dims.nbDims;
    for (int32_t i = 0; i < shape.nbDims; ++i) {
      dimensions.push_back(std::make_unique<HostDimension>(d.desc.dims.d[i]));
      shape.d[i] = dimensions.back().get();
    }
    shapes.push_back(shape);
  }
  HostExpressions expressions;
  DimsExprs out{};
  const auto status =
      call<int32_t>(build, slots::kOutputShapes, static_cast<const DimsExprs*>(shapes.data()), inputs,
                    static_cast<const DimsExprs*>(nullptr), 0, &out, 1, static_cast<IExprBuilder*>(&expressions));
  CHECK(status == 0 && out.nbDims == c.rank + 2, c.name);
  CHECK(out.d[0] == shapes[0].d[0] && out.d[1] == shapes[0].d[1], c.name);
  for (int32_t i = 0; status == 0 && i < c.rank; ++i) {
    CHECK(out.d[i + 2]->getConstantValue() == output_size(c)[static_cast<size_t>(i)], c.name);
  }

  const auto supports = [&](int32_t pos) {
    return call<bool>(build, slots::kSupports, pos, static_cast<const DynamicPluginTensorDesc*>(all.data()), inputs, 1);
  };
  for (int32_t pos = 0; pos <= inputs; ++pos) CHECK(supports(pos), c.name);
  CHECK(!supports(inputs + 1) && !supports(-1), c.name);
  formats::check_every_format(c, build, all);
  formats::check_beside_int8(c, build, all);
  const auto kind = all[0].desc;
  all[0].desc.format = c.rank == 2 ? TensorFormat::kDHWC : TensorFormat::kHWC;  // the other rank's
  CHECK(!supports(0), c.name);
  all[0].desc.format = c.rank == 2 ? TensorFormat::kHWC8 : TensorFormat::kDHWC8;
  all[0].desc.type = DataType::kHALF;
  all[0].desc.dims.d[1] = 12;  // would be padded to 16
  CHECK(!supports(0), c.name);
  all[0].desc = kind;
  all[1].desc.type = c.type == DataType::kBF16 ? DataType::kHALF : DataType::kBF16;
  CHECK(!supports(1), c.name);
  all[1].desc.type = DataType::kFLOAT;

  const auto configure = [&] {
    return call<int32_t>(build, slots::kConfigure, static_cast<const DynamicPluginTensorDesc*>(all.data()), inputs,
                         static_cast<const DynamicPluginTensorDesc*>(&all[static_cast<size_t>(inputs)]), 1);
  };
  CHECK(configure() == 0, c.name);
  for (int32_t i = 2; i < inputs; ++i) {  // a constant that does not match the grid, or theta
    for (int32_t axis = 0; axis < 2; ++axis) {
      all[static_cast<size_t>(i)].desc.dims.d[axis] += 1;
      CHECK(configure() != 0, c.name);
      all[static_cast<size_t>(i)].desc.dims.d[axis] -= 1;
    }
  }
  all[1].desc.dims.d[1] += 1;
  CHECK(configure() != 0, c.name);
  all[1].desc.dims.d[1] -= 1;
  if (inputs == 3) {  // no columns of theta, and no rows of the basis
    const int64_t count = all[1].desc.dims.d[2];
    all[1].desc.dims.d[2] = all[2].desc.dims.d[0] = 0;
    CHECK(configure() != 0, c.name);
    all[1].desc.dims.d[2] = all[2].desc.dims.d[0] = count;
  }
  all[static_cast<size_t>(inputs)].desc.dims.d[3] += 1;
  CHECK(configure() != 0, c.name);
  const auto workspace = call<size_t>(build, slots::kWorkspace, static_cast<const DynamicPluginTensorDesc*>(all.data()),
                                      inputs, static_cast<const DynamicPluginTensorDesc*>(all.data() + inputs), 1);
  CHECK(workspace == 0, c.name);
}

void run(const Library& library, Device& device, const Case& c, void* runtime, int64_t batch,
         const std::vector<int64_t>& image_size) {
  std::mt19937 random(7);
  const std::vector<PluginTensorDesc> d = descs(c, batch, image_size);
  const int32_t inputs = inputs_of(c);
  std::vector<std::vector<char>> data;
  std::vector<void*> buffers;
  for (int32_t i = 0; i < inputs; ++i) {
    data.push_back(random_bytes(d[static_cast<size_t>(i)], i == 0, random));
    buffers.push_back(device.upload(data.back()));
  }
  const size_t size = byte_size(d.back());
  void* out = device.upload(std::vector<char>(size, 'x'));
  const PluginTensorDesc* in_descs = d.data();
  const PluginTensorDesc* out_descs = d.data() + inputs;
  CHECK((call<int32_t>(runtime, slots::kShapeChange, in_descs, inputs, out_descs, 1) == 0), c.name);
  const auto enqueue = [&](void* const* in, void* const* outs) {
    return call<int32_t>(runtime, slots::kEnqueue, in_descs, out_descs, in, outs, static_cast<void*>(nullptr),
                         device.stream());
  };
  CHECK(enqueue(buffers.data(), &out) == 0, c.name);
  const std::vector<char> found = device.download(out, size);
  const std::vector<char> wanted = expected(library, c, d, data);
  check_close(c, found, wanted);
  CHECK(enqueue(nullptr, &out) != 0, c.name);
  formats::check_enqueue_refuses_int8(c, runtime, d, buffers.data(), &out, device.stream());
  for (void* buffer : buffers) device.release(buffer);
  device.release(out);
}

void check_life(const Library& library, Device& device, const Case& c, void* const* creators) {
  void* creator = creators[c.creator];
  void* plugin = create(creator, attributes(c).collection(), TensorRTPhase::kBUILD);
  CHECK(plugin != nullptr && is_interface(plugin, "PLUGIN"), c.name);
  if (plugin == nullptr) return;
  const auto capability = [](void* object, PluginCapabilityType type) {
    return call<void*>(object, slots::kCapability, type);
  };
  void* core = capability(plugin, PluginCapabilityType::kCORE);
  CHECK(is_interface(core, "PLUGIN_V3ONE_CORE"), c.name);
  CHECK(same(call<const char*>(core, slots::kName), call<const char*>(creator, slots::kCreatorName)), c.name);
  CHECK(same(call<const char*>(core, slots::kVersion), c.creator == kProjective2 ? "2" : "1"), c.name);
  CHECK(same(call<const char*>(core, slots::kNamespace), c.creator == kGridSample ? "" : "stn"), c.name);
  check_build(c, capability(plugin, PluginCapabilityType::kBUILD));

  // Serialize and deserialize; the original plugin is destroyed before the new one is created.
  void* copy = call<void*>(plugin, slots::kClone);
  CHECK(copy != nullptr && copy != plugin, c.name);
  call<void>(plugin, slots::kDelete);
  Attributes stored;
  stored.copy(*call<const PluginFieldCollection*>(capability(copy, PluginCapabilityType::kRUNTIME), slots::kSerialize));
  const std::string built = call<const char*>(capability(copy, PluginCapabilityType::kBUILD), slots::kMetadata);
  call<void>(copy, slots::kDelete);
  void* loaded = create(creator, stored.collection(), TensorRTPhase::kRUNTIME);
  CHECK(loaded != nullptr, c.name);
  if (loaded == nullptr) return;
  CHECK(built == call<const char*>(capability(loaded, PluginCapabilityType::kBUILD), slots::kMetadata), c.name);

  void* in_context =
      call<void*>(capability(loaded, PluginCapabilityType::kRUNTIME), slots::kAttach, static_cast<void*>(nullptr));
  call<void>(loaded, slots::kDelete);
  void* runtime = capability(in_context, PluginCapabilityType::kRUNTIME);
  CHECK(is_interface(runtime, "PLUGIN_V3ONE_RUNTIME"), c.name);
  CHECK((call<int32_t>(runtime, slots::kSetTactic, 0) == 0), c.name);
  const bool flat = c.rank == 2;
  run(library, device, c, runtime, 3, flat ? std::vector<int64_t>{6, 9} : std::vector<int64_t>{4, 5, 6});
  run(library, device, c, runtime, 1, flat ? std::vector<int64_t>{1, 4} : std::vector<int64_t>{2, 1, 3});
  run(library, device, c, runtime, 0, flat ? std::vector<int64_t>{6, 9} : std::vector<int64_t>{4, 5, 6});
  call<void>(in_context, slots::kDelete);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || (argc == 3 && std::strcmp(argv[2], "--cuda") != 0) || argc > 3) {
    std::fprintf(stderr, "usage: %s LIBRARY [--cuda]\n", argv[0]);
    return 2;
  }
  const bool cuda = argc == 3;
  setenv("STN_TENSORRT_DEVICE", cuda ? "gpu" : "cpu", 1);
  const Library library(argv[1]);
  if (cuda && library.get<int()>("stn_has_cuda")() == 0) {
    std::fprintf(stderr, "%s was built without CUDA\n", argv[1]);
    return 2;
  }
  std::unique_ptr<Device> device;
  if (cuda) {
    device = std::make_unique<CudaDevice>();
  } else {
    device = std::make_unique<HostDevice>();
  }

  library.get<void(void*)>("setLoggerFinder")(nullptr);
  int32_t count = 0;
  void* const* creators = library.get<void* const*(int32_t&)>("getCreators")(count);
  CHECK(count == 7, "getCreators");
  if (count != 7) return 1;
  check_creator(creators[0], "SpatialTransformer", "stn");
  check_creator(creators[1], "ProjectiveTransformer", "stn");
  check_creator(creators[2], "GridSample", "");
  check_creator(creators[3], "Sampler", "stn");
  check_creator(creators[4], "TensorProductTransformer", "stn");
  check_creator(creators[5], "LatticeTransformer", "stn");
  check_creator(creators[kProjective2], "ProjectiveTransformer", "stn", "2");
  check_refusals(creators);
  for (const Case& c : cases::all()) check_life(library, *device, c, creators);
  std::printf("%d checks, %d failed, %s\n", checks, failures, cuda ? "on the GPU" : "in host memory");
  return failures == 0 ? 0 : 1;
}
