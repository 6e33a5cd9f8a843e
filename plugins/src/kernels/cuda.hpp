/// \file cuda.hpp
/// \brief Launching a warp on a CUDA stream.
#ifndef STN_KERNELS_CUDA_HPP_
#define STN_KERNELS_CUDA_HPP_

#include "kernels/warp.hpp"

namespace stn {

/// Whether the library contains the CUDA kernels.
bool has_cuda();

/// Launches a warp whose arrays are in device memory; returns a stn_status.
int run_cuda(const Warp& warp, void* stream);

}  // namespace stn

#endif  // STN_KERNELS_CUDA_HPP_
