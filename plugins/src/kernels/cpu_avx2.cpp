#include "kernels/cpu_channels_last.hpp"
#include "kernels/cpu_planar.hpp"
#include "kernels/lanes_avx2.hpp"

namespace stn {

CpuRun avx2_kernel(const Warp& warp) { return simd_kernel<Avx2Lanes>(warp); }

}  // namespace stn
