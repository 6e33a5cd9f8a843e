/// \file processors.hpp
/// \brief The processors that this process may run on, whatever the calling thread is pinned to.
#ifndef STN_KERNELS_PROCESSORS_HPP_
#define STN_KERNELS_PROCESSORS_HPP_

#include <sched.h>

namespace stn {

/// \brief The union of the affinity masks of the process's threads, as far as they were seen.
///
/// The mask of one thread says nothing about the process: a caller may be pinned to a processor of its own, and a new
/// thread inherits the mask of its creator. The masks of all threads are read at the first call; after that only the
/// caller's is, and the set never shrinks. Thread-safe.
cpu_set_t process_processors();

}  // namespace stn

#endif  // STN_KERNELS_PROCESSORS_HPP_
