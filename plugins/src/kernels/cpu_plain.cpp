#include "kernels/cpu_planar.hpp"
#include "kernels/lanes_scalar.hpp"

namespace stn {

// Strides make one kernel serve both layouts.
CpuRun plain_kernel(const Warp& warp) { return planar_kernel<ScalarLanes>(warp); }

}  // namespace stn
