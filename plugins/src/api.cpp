#include <cstring>
#include <limits>
#include <new>

#include "kernels/cpu.hpp"
#include "kernels/cuda.hpp"
#include "kernels/thread_pool.hpp"
#include "kernels/warp.hpp"
#include "stn/stn.h"

#ifndef STN_VERSION
#define STN_VERSION "0.0.0"
#endif

extern "C" {

int stn_check(const stn_problem* problem) { return stn::make_warp(problem, nullptr); }

int stn_run_cpu(const stn_problem* problem, int threads) {
  stn::Warp warp;
  if (int status = stn::make_warp(problem, &warp)) return status;
  stn::CpuPlan plan = stn::plan_cpu(warp);
  if (plan.run == nullptr) return STN_ERROR_MEMORY;
  const stn::RangeTask task{[](void* context, int64_t begin, int64_t end) {
                              const auto& work = *static_cast<const stn::CpuPlan*>(context);
                              work.run(work, begin, end);
                            },
                            &plan};
  try {
    stn::parallel_for(task, plan.units, plan.grain, threads > 0 ? threads : std::numeric_limits<int>::max());
  } catch (const std::bad_alloc&) {
    return STN_ERROR_MEMORY;
  }
  return STN_OK;
}

int stn_run_cuda(const stn_problem* problem, void* cuda_stream) {
  stn::Warp warp;
  if (int status = stn::make_warp(problem, &warp)) return status;
  return stn::run_cuda(warp, cuda_stream);
}

const char* stn_status_text(int status) {
  switch (status) {
    case STN_OK:
      return "ok";
    case STN_ERROR_STRUCT_SIZE:
      return "struct_size does not match this library; build the caller and libstn_plugins from the same stn.h";
    case STN_ERROR_VALUE:
      return "rank, kind, mode, padding, dtype or layout is unknown, or their combination is not supported";
    case STN_ERROR_SIZE:
      return "a size is negative, or two sizes are inconsistent";
    case STN_ERROR_OVERFLOW:
      return "an array is too large to address";
    case STN_ERROR_POINTER:
      return "a required array is missing";
    case STN_ERROR_NO_CUDA:
      return "libstn_plugins was built without CUDA";
    case STN_ERROR_CUDA:
      return stn::cuda_error();
    case STN_ERROR_MEMORY:
      return "out of memory";
    case STN_ERROR_POINTS:
      return "the columns of the basis, or the points of the grid, are not the product of the output's sizes";
    default:
      return "unknown status";
  }
}

const char* stn_version(void) { return STN_VERSION; }

int stn_op_version(const char* name) {
  struct Known {
    const char* name;
    int version;
  };
  static constexpr Known kOps[] = {{"SpatialTransformer", 1},
                                   {"ProjectiveTransformer", STN_PROJECTIVE_VERSION},
                                   {"TensorProductTransformer", 1},
                                   {"LatticeTransformer", 1},
                                   {"Sampler", 1}};
  for (const Known& op : kOps) {
    if (name != nullptr && std::strcmp(op.name, name) == 0) return op.version;
  }
  return 0;
}

int stn_has_cuda(void) { return stn::has_cuda() ? 1 : 0; }

int stn_cuda_usable(int device) { return stn::cuda_usable(device) ? 1 : 0; }

const char* stn_cpu_isa(void) { return stn::cpu_isa(); }

}  // extern "C"
