/// \file onnxruntime_op.hpp
/// \brief The ops of domain `stn` as onnxruntime sees them, and the kernel that runs all of them.
#ifndef STN_SRC_ADAPTERS_ONNXRUNTIME_OP_HPP_
#define STN_SRC_ADAPTERS_ONNXRUNTIME_OP_HPP_

#include <cstddef>
#include <cstdint>

#include "abi/onnxruntime.h"

namespace stn::ort {

/// Which op a node is: two that compute the grid from theta and basis, two from a lattice, and one that reads a grid.
enum class OpKind { kSpatial, kProjective, kTensorProduct, kLattice, kSampler };

/// \brief An op's name in domain `stn`.
inline const char* name_of(OpKind kind) {
  constexpr const char* kNames[] = {"SpatialTransformer", "ProjectiveTransformer", "TensorProductTransformer",
                                    "LatticeTransformer", "Sampler"};
  return kNames[static_cast<int>(kind)];
}

/// \brief The number of an op's inputs: image, theta or grid, then its constants.
inline size_t inputs_of(OpKind kind) {
  constexpr size_t kCounts[] = {3, 3, 5, 4, 2};
  return kCounts[static_cast<int>(kind)];
}

/// One op for one image type, one type of coordinates and one execution provider.
struct Op : CustomOp {
  Op(const Api* api, OpKind kind, bool on_cuda, int32_t image_dtype, int32_t coordinate_dtype);

  const Api* api;
  OpKind kind;
  bool cuda;
  int32_t dtype;
  int32_t grid_dtype;  ///< of a Sampler's grid; theta and basis are fp32
};

/// \brief The op behind onnxruntime's pointer.
inline const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

// The functions of every op's kernel.
Status* create_kernel(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
Status* compute(void* kernel, KernelContext* context);
void destroy_kernel(void* kernel);

/// \brief Sets the output's shape when a model is loaded. An unknown shape is left unset, which is not an error.
Status* infer_shape(const CustomOp* op, ShapeInferContext* context);

}  // namespace stn::ort

#endif  // STN_SRC_ADAPTERS_ONNXRUNTIME_OP_HPP_
