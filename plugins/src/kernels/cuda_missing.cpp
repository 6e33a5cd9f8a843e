// Replaces cuda_warp.cu in a build without nvcc.
#include "kernels/cuda.hpp"

namespace stn {

bool has_cuda() { return false; }

int run_cuda(const Warp&, void*) { return STN_ERROR_NO_CUDA; }

}  // namespace stn
