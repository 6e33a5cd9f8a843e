/// \file tensorrt_slots.hpp
/// \brief The binary layout of TensorRT's plugin interface: an object is a pointer to a table of functions.
///
/// The host calls plugins through these slots and not through the classes in abi/, so that it detects a wrong order
/// there. The numbers are those of TensorRT 10.0 to 11.1: language, interface info and two destructors first, then the
/// interface's functions in the order of their declaration.
#ifndef STN_TESTS_TENSORRT_SLOTS_HPP_
#define STN_TESTS_TENSORRT_SLOTS_HPP_

#include <cstdint>

#include "../abi/tensorrt.h"

namespace slots {

enum Any { kLanguage = 0, kInfo = 1, kDelete = 3 };
enum Plugin { kCapability = 4, kClone = 5 };
enum Core { kName = 4, kVersion = 5, kNamespace = 6 };
enum Build {
  kConfigure = 4,
  kOutputTypes = 5,
  kOutputShapes = 6,
  kSupports = 7,
  kOutputs = 8,
  kWorkspace = 9,
  kValidTactics = 10,
  kTactics = 11,
  kTimingId = 12,
  kFormatLimit = 13,
  kMetadata = 14
};
enum Runtime { kSetTactic = 4, kShapeChange = 5, kEnqueue = 6, kAttach = 7, kSerialize = 8 };
enum Creator { kCreate = 4, kFields = 5, kCreatorName = 6, kCreatorVersion = 7, kCreatorNamespace = 8 };

/// \brief Calls function `slot` of the object's table.
template <typename Result, typename... Args>
Result call(void* object, int slot, Args... args) {
  void** table = *static_cast<void***>(object);
  return reinterpret_cast<Result (*)(void*, Args...)>(table[slot])(object, args...);
}

}  // namespace slots

/// \brief A dimension as passed by TensorRT's builder: a constant, or unknown.
class HostDimension final : public nvinfer1::IDimensionExpr {
 public:
  /// \param value the extent, or -1.
  explicit HostDimension(int64_t value) : value_(value) { mImpl = &value_; }

 private:
  struct Value final : nvinfer1::apiv::VDimensionExpr {
    explicit Value(int64_t extent) : extent_(extent) {}
    bool isConstant() const override { return extent_ >= 0; }
    int64_t getConstantValue() const override { return extent_; }
    bool isSizeTensor() const override { return false; }
    int64_t extent_;
  };
  Value value_;
};

/// \brief An expression builder for constants only; other calls return a null pointer.
class HostExpressions final : public nvinfer1::IExprBuilder {
 public:
  HostExpressions() { mImpl = &maker_; }

 private:
  struct Maker final : nvinfer1::apiv::VExprBuilder {
    ~Maker() noexcept override {
      for (int i = 0; i < made_; ++i) delete made_dimensions_[i];
    }
    nvinfer1::IDimensionExpr const* constant(int64_t value) override {
      return made_ < kMost ? made_dimensions_[made_++] = new HostDimension(value) : nullptr;
    }
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation, nvinfer1::IDimensionExpr const&,
                                              nvinfer1::IDimensionExpr const&) override {
      return nullptr;
    }
    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&,
                                                      nvinfer1::IDimensionExpr const&) override {
      return nullptr;
    }
    static constexpr int kMost = 16;
    HostDimension* made_dimensions_[kMost] = {};
    int made_ = 0;
  };
  Maker maker_;
};

#endif  // STN_TESTS_TENSORRT_SLOTS_HPP_
