#include "kernels/cpu_channels_last.hpp"
#include "kernels/cpu_planar.hpp"
#include "kernels/lanes_avx512.hpp"

namespace stn {

CpuRun avx512_kernel(const Warp& warp) { return simd_kernel<Avx512Lanes>(warp); }

}  // namespace stn
