/// \file thread_pool.hpp
/// \brief A small thread pool, shared by all callers in the process; created at first use, never destroyed.
#ifndef STN_KERNELS_THREAD_POOL_HPP_
#define STN_KERNELS_THREAD_POOL_HPP_

#include <stdint.h>

namespace stn {

/// Work that can be split into ranges: `run(context, begin, end)`.
struct RangeTask {
  void (*run)(void* context, int64_t begin, int64_t end);
  void* context;
};

/// \brief Runs [0, count) in pieces of at least `grain`, in the calling thread and in at most `threads - 1` others, and
/// no more threads than the process has processors.
///
/// Returns when all pieces are complete. Thread-safe.
void parallel_for(const RangeTask& task, int64_t count, int64_t grain, int threads);

}  // namespace stn

#endif  // STN_KERNELS_THREAD_POOL_HPP_
