/// \file cuda.hpp
/// \brief Launching a warp on a CUDA stream.
#ifndef STN_KERNELS_CUDA_HPP_
#define STN_KERNELS_CUDA_HPP_

#include "kernels/warp.hpp"

namespace stn {

/// Whether the library contains the CUDA kernels.
bool has_cuda();

/// Whether a kernel can be loaded on a GPU; if not, cuda_error() has the reason.
bool cuda_usable(int device);

/// CUDA's last error on the calling thread, on one line.
const char* cuda_error();

/// Launches a warp whose arrays are in device memory; returns a stn_status.
int run_cuda(const Warp& warp, void* stream);

}  // namespace stn

#endif  // STN_KERNELS_CUDA_HPP_
