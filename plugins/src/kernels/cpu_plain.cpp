#include "kernels/cpu_planar.hpp"
#include "kernels/lanes_scalar.hpp"

namespace stn {

// One kernel for both layouts, through strides.
CpuRun plain_kernel(const Warp& warp) { return planar_kernel<ScalarLanes>(warp); }

}  // namespace stn
