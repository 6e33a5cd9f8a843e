#include "kernels/cpu_channels_last.hpp"
#include "kernels/cpu_packed.hpp"
#include "kernels/lanes_avx512.hpp"

namespace stn {

CpuRun avx512_kernel(const Warp& warp, bool packed) {
  return packed ? packed_kernel<Avx512Lanes>(warp) : simd_kernel<Avx512Lanes>(warp);
}

}  // namespace stn
