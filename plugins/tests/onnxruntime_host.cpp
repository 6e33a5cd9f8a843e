/// \file onnxruntime_host.cpp
/// \brief Drives the onnxruntime ops of a built library as a session does, without onnxruntime.
///
///     onnxruntime_host LIBRARY                 the ops of the CPU execution provider
///     onnxruntime_host LIBRARY --cuda          the ops of the CUDA execution provider, on the first GPU
///     onnxruntime_host LIBRARY --cuda-on-cpu   the same, in a library whose kernels were compiled with
///     tests/cuda_on_cpu
///
/// Every op and combination of types: registration, attributes, shape inference, and running with memory and a stream
/// of the device, twice at once and in a graph capture. Outputs are compared with stn_run_cpu on a problem that is
/// filled in here. Exit code 0: all checks passed, 1: some failed, 2: the test could not run.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device_memory.hpp"
#include "host_checks.hpp"
#include "onnxruntime_api.hpp"

namespace {

using namespace stn::ort;

constexpr int kTensorRTOnly = kGridSample;  // the creator of ONNX's own GridSample; onnxruntime has none

ElementType element(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return kFloat;
    case nvinfer1::DataType::kHALF:
      return kFloat16;
    case nvinfer1::DataType::kINT32:
      return kInt32;
    default:
      return kBFloat16;
  }
}

const char* op_name(const Case& c) {
  constexpr const char* kNames[] = {
      "SpatialTransformer", "ProjectiveTransformer", "", "Sampler", "TensorProductTransformer",
      "LatticeTransformer", "ProjectiveTransformer"};
  return kNames[c.creator];
}

/// The node of a case. Version 2 says so; version 1 may.
KernelInfo node(const Case& c) {
  KernelInfo info;
  Attributes all = attributes(c);
  const nvinfer1::PluginFieldCollection& fields = *all.collection();
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const nvinfer1::PluginField& field = fields.fields[i];
    const auto count = static_cast<size_t>(field.length);
    const auto copied = [&](auto sample) {
      std::vector<decltype(sample)> values(count);
      std::memcpy(values.data(), field.data, count * sizeof sample);
      return values;
    };
    const std::string name = field.name;
    if (field.type == nvinfer1::PluginFieldType::kCHAR) {
      info.words[name] = std::string(static_cast<const char*>(field.data), count);
    } else if (name == "align_corners") {
      info.integers[name] = copied(int32_t{})[0];
    } else if (name == "w_min") {
      info.floats[name] = copied(float{})[0];
    } else if (field.type == nvinfer1::PluginFieldType::kFLOAT32) {
      info.float_lists[name] = copied(float{});
    } else {
      const std::vector<int32_t> values = copied(int32_t{});
      info.integer_lists[name].assign(values.begin(), values.end());
    }
  }
  if (c.creator == kProjective2) info.words["plugin_version"] = "2";
  return info;
}

std::vector<int64_t> sizes_of(const nvinfer1::PluginTensorDesc& d) {
  return std::vector<int64_t>(d.dims.d, d.dims.d + d.dims.nbDims);
}

/// Frees a status; whether there was one, with a message that starts with the op's name and is one line.
bool refused(const CustomOp* op, Status* status) {
  if (status == nullptr) return false;
  const bool good = status->code == kInvalidArgument && status->message.find('\n') == std::string::npos &&
                    status->message.rfind(std::string("stn::") + op->name(op) + ": ", 0) == 0;
  if (!good) std::printf("%d: %s\n", status->code, status->message.c_str());
  get_api(1)->release(status);
  return good;
}

/// Frees a status, and prints it if there is one; whether there was none.
bool fine(Status* status) {
  if (status == nullptr) return true;
  std::printf("%s\n", status->message.c_str());
  get_api(1)->release(status);
  return false;
}

class Host {
 public:
  Host(const Library& library, Device& device, bool cuda) : library_(library), device_(device), cuda_(cuda) {
    const ApiBase base{get_api, nullptr};
    SessionOptions options;
    CHECK(fine(library.get<Status*(SessionOptions*, const ApiBase*)>("RegisterCustomOps")(&options, &base)),
          "register");
    if (options.domain == nullptr) return;
    CHECK(options.domain->name == "stn", "domain");
    const char* provider = cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
    for (const CustomOp* op : options.domain->ops) {
      CHECK(op->version == kApiVersion && op->start_version(op) == 1 && op->end_version(op) == 1, op->name(op));
      if (std::strcmp(op->execution_provider(op), provider) == 0) ops_.push_back(op);
    }
    CHECK(ops_.size() == 4 * 3 + 3 * 3, provider);
    SessionOptions second;  // another session gets the same ops
    CHECK(fine(library.get<Status*(SessionOptions*, const ApiBase*)>("RegisterCustomOps")(&second, &base)), "register");
    CHECK(second.domain == options.domain, "one domain for all sessions");
  }

  /// The op that onnxruntime chooses for a node: that of its name whose inputs have these types.
  const CustomOp* find(const Case& c, const std::vector<nvinfer1::PluginTensorDesc>& d) const {
    const CustomOp* found = nullptr;
    for (const CustomOp* op : ops_) {
      bool fits = std::strcmp(op->name(op), op_name(c)) == 0 && op->input_count(op) + 1 == d.size();
      for (size_t i = 0; fits && i + 1 < d.size(); ++i) {
        fits = op->input_type(op, i) == element(d[i].type) && op->input_characteristic(op, i) == kRequired &&
               op->input_memory(op, i) == kMemoryDefault;
      }
      fits = fits && op->output_count(op) == 1 && op->output_type(op, 0) == element(d.back().type);
      CHECK(!fits || found == nullptr, c.name);
      if (fits) found = op;
    }
    return found;
  }

  /// A node's life: shapes, kernel, several calls, end. `grid` is the type of a sampler's grid.
  void live(const Case& c, nvinfer1::DataType grid) {
    const std::vector<int64_t> usual = c.rank == 2 ? std::vector<int64_t>{6, 9} : std::vector<int64_t>{4, 5, 6};
    const std::vector<int64_t> small = c.rank == 2 ? std::vector<int64_t>{1, 4} : std::vector<int64_t>{2, 1, 3};
    const CustomOp* op = find(c, with_grid(descs(c, 1, usual), c, grid));
    CHECK(op != nullptr, c.name);
    if (op == nullptr) return;
    infer(c, op, usual);
    const KernelInfo info = node(c);
    void* kernel = nullptr;
    CHECK(fine(op->create_kernel_status(op, get_api(kApiVersion), &info, &kernel)) && kernel != nullptr, c.name);
    if (kernel == nullptr) return;
    for (const bool captured : {false, true}) {
      run(c, op, kernel, with_grid(descs(c, 3, usual), c, grid), captured);
      run(c, op, kernel, with_grid(descs(c, 1, small), c, grid), captured);
    }
    run(c, op, kernel, with_grid(descs(c, 0, usual), c, grid), false);
    refuse_shapes(c, op, kernel, with_grid(descs(c, 3, usual), c, grid));
    op->destroy_kernel(kernel);
  }

  /// Attributes that a kernel must refuse when a model is loaded.
  void refuse_attributes(const Case& c) {
    const CustomOp* op = find(c, descs(c, 1, c.rank == 2 ? std::vector<int64_t>{6, 9} : std::vector<int64_t>{4, 5, 6}));
    if (op == nullptr) return;
    const auto refuse = [&](const char* what, auto change) {
      KernelInfo info = node(c);
      change(info);
      void* kernel = nullptr;
      CHECK(refused(op, op->create_kernel_status(op, get_api(kApiVersion), &info, &kernel)) && kernel == nullptr, what);
      if (kernel != nullptr) op->destroy_kernel(kernel);
    };
    refuse("mode", [](KernelInfo& info) { info.words["mode"] = "lanczos"; });
    refuse("padding", [](KernelInfo& info) { info.words["padding_mode"] = "wrap"; });
    refuse("a newer version", [](KernelInfo& info) { info.words["plugin_version"] = "3"; });
    refuse("no version", [](KernelInfo& info) { info.words["plugin_version"] = "one"; });
    if (reads_grid(c)) return;
    refuse("a short grid_shape", [](KernelInfo& info) { info.integer_lists["grid_shape"] = {0, 5, 2}; });
    refuse("another rank", [](KernelInfo& info) { info.integer_lists["grid_shape"].back() += 1; });
    refuse("a negative size", [](KernelInfo& info) { info.integer_lists["grid_shape"][1] = -5; });
    refuse("a size that overflows", [](KernelInfo& info) {
      info.integer_lists["grid_shape"][1] = info.integer_lists["grid_shape"][2] = int64_t{1} << 40;
    });
    if (c.creator == 0) refuse("kind", [](KernelInfo& info) { info.words["kind"] = "projective"; });
    if (c.creator == 1) refuse("w_min in version 1", [](KernelInfo& info) { info.floats["w_min"] = 1; });
    if (c.creator != kProjective2) return;
    refuse("no w_min", [](KernelInfo& info) { info.floats.clear(); });
    refuse("w_min NaN", [](KernelInfo& info) { info.floats["w_min"] = std::nanf(""); });
    refuse("no offset", [](KernelInfo& info) { info.float_lists.clear(); });
    refuse("a long offset", [](KernelInfo& info) { info.float_lists["offset"].push_back(0); });
    refuse("an infinite offset", [](KernelInfo& info) { info.float_lists["offset"][0] = INFINITY; });
  }

 private:
  using Descs = std::vector<nvinfer1::PluginTensorDesc>;

  static Descs with_grid(Descs d, const Case& c, nvinfer1::DataType type) {
    if (reads_grid(c)) d[1].type = type;
    return d;
  }

  /// The output's shape, with the batch's name; nothing for an image of unknown rank.
  void infer(const Case& c, const CustomOp* op, const std::vector<int64_t>& image_size) {
    ShapeInferContext context;
    const Descs d = descs(c, -1, image_size);
    for (size_t i = 0; i + 1 < d.size(); ++i) {
      TensorInfo info{element(d[i].type), sizes_of(d[i]), {}};
      info.names.resize(info.sizes.size());
      if (i < 2) info.names[0] = "batch";
      context.inputs.push_back(info);
    }
    context.grid_shape.integers = output_size(c);
    context.grid_shape.integers.insert(context.grid_shape.integers.begin(), 0);
    context.grid_shape.integers.push_back(c.rank);
    CHECK(fine(op->infer_shape(op, &context)) && context.outputs == 1, c.name);
    CHECK(context.output.sizes == sizes_of(d.back()) && context.output.type == element(d.back().type), c.name);
    CHECK(!context.output.names.empty() && context.output.names[0] == "batch", c.name);
    context.inputs[0].sizes.clear();
    context.outputs = 0;
    CHECK(fine(op->infer_shape(op, &context)) && context.outputs == 0, c.name);
  }

  /// Memory of the device for a call, and the call.
  struct Call {
    KernelContext context;
    std::vector<std::vector<char>> data;
    size_t size = 0;
  };

  Call prepare(const Descs& d, unsigned seed) {
    std::mt19937 random(seed);
    Call call;
    for (size_t i = 0; i + 1 < d.size(); ++i) {
      call.data.push_back(random_bytes(d[i], i == 0, random));
      call.context.inputs.push_back({{element(d[i].type), sizes_of(d[i]), {}}, device_.upload(call.data.back())});
    }
    call.size = byte_size(d.back());
    call.context.output.data = device_.upload(std::vector<char>(call.size, 'x'));
    call.context.on_gpu = cuda_;
    call.context.stream = device_.stream();
    return call;
  }

  void release(const Call& call) {
    for (const Value& input : call.context.inputs) device_.release(input.data);
    device_.release(call.context.output.data);
  }

  /// Two calls of one kernel, launched before either is waited for.
  void run(const Case& c, const CustomOp* op, void* kernel, const Descs& d, bool captured) {
    Call calls[] = {prepare(d, 7), prepare(d, 8)};
    if (captured) device_.begin_capture();
    bool good = true;
    for (Call& call : calls) good = fine(op->compute_status(kernel, &call.context)) && good;
    if (captured) device_.run_captured();
    CHECK(good, c.name);
    for (Call& call : calls) {
      CHECK(call.context.outputs == 1 && call.context.output.info.sizes == sizes_of(d.back()), c.name);
      CHECK(call.context.streams == (cuda_ ? 1 : 0), c.name);
      const std::vector<char> found = device_.download(call.context.output.data, call.size);
      check_close(c, found, expected(library_, c, d, call.data));
      release(call);
    }
  }

  /// Shapes that a kernel must refuse when it runs.
  void refuse_shapes(const Case& c, const CustomOp* op, void* kernel, const Descs& d) {
    Call call = prepare(d, 9);
    const auto refuse = [&](const char* what, size_t input, auto change) {
      std::vector<int64_t>& sizes = call.context.inputs[input].info.sizes;
      const std::vector<int64_t> before = sizes;
      change(sizes);
      CHECK(refused(op, op->compute_status(kernel, &call.context)), what);
      sizes = before;
    };
    refuse("an image of another rank", 0, [](std::vector<int64_t>& sizes) { sizes.push_back(1); });
    refuse("an image without pixels", 0, [](std::vector<int64_t>& sizes) { sizes.back() = 0; });
    refuse("coordinates of another batch", 1, [](std::vector<int64_t>& sizes) { sizes[0] += 1; });
    refuse("coordinates of another rank", 1, [](std::vector<int64_t>& sizes) { sizes.pop_back(); });
    for (size_t input = 2; input + 1 < d.size(); ++input) {
      for (const size_t axis : {0, 1}) {
        refuse("a constant of another length", input, [&](std::vector<int64_t>& sizes) { sizes[axis] += 1; });
      }
      refuse("a constant without rows", input, [](std::vector<int64_t>& sizes) { sizes.erase(sizes.begin()); });
    }
    CHECK(call.context.streams == 0, c.name);  // nothing was launched
    release(call);
  }

  const Library& library_;
  Device& device_;
  bool cuda_;
  std::vector<const CustomOp*> ops_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string where = argc == 3 ? argv[2] : "";
  if (argc < 2 || argc > 3 || (argc == 3 && where != "--cuda" && where != "--cuda-on-cpu")) {
    std::fprintf(stderr, "usage: %s LIBRARY [--cuda | --cuda-on-cpu]\n", argv[0]);
    return 2;
  }
  const Library library(argv[1]);
  const bool cuda = argc == 3;
  if (cuda && library.get<int()>("stn_has_cuda")() == 0) {
    std::fprintf(stderr, "%s was built without CUDA\n", argv[1]);
    return 2;
  }
  std::unique_ptr<Device> device;
  if (where == "--cuda") {
    device = std::make_unique<CudaDevice>();
  } else {
    device = std::make_unique<HostDevice>();
  }
  Host host(library, *device, cuda);
  using nvinfer1::DataType;
  for (Case c : cases::all()) {
    if (c.creator == kTensorRTOnly) continue;
    c.input_format = c.output_format = nvinfer1::TensorFormat::kLINEAR;  // onnxruntime knows no other layout
    for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
      c.type = type;
      host.live(c, DataType::kFLOAT);
      if (!reads_grid(c)) continue;
      host.live(c, DataType::kHALF);
      host.live(c, DataType::kBF16);
    }
    c.type = DataType::kFLOAT;
    host.refuse_attributes(c);
  }
  CHECK(stn::ort::statuses == 0 && stn::ort::infos == 0, "everything is released");
  std::printf("%d checks, %d failed, %s\n", checks, failures, where == "--cuda" ? "on the GPU" : "in host memory");
  return failures == 0 ? 0 : 1;
}
