// Replaces cuda_warp.cu in a build without nvcc.
#include "kernels/cuda.hpp"

namespace stn {

bool has_cuda() { return false; }

bool cuda_usable(int) { return false; }

const char* cuda_error() { return "libstn_plugins was built without CUDA"; }

int run_cuda(const Warp&, void*) { return STN_ERROR_NO_CUDA; }

}  // namespace stn
