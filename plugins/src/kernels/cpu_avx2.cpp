#include "kernels/cpu_channels_last.hpp"
#include "kernels/cpu_packed.hpp"
#include "kernels/lanes_avx2.hpp"

namespace stn {

CpuRun avx2_kernel(const Warp& warp, bool packed) {
  return packed ? packed_kernel<Avx2Lanes>(warp) : simd_kernel<Avx2Lanes>(warp);
}

}  // namespace stn
