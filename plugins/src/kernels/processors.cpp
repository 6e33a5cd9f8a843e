#include "kernels/processors.hpp"

#include <dirent.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>

namespace stn {
namespace {

/// The processors of a thread; 0 is the caller. Empty if they cannot be read.
cpu_set_t mask_of(pid_t thread) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(thread, sizeof set, &set) != 0) CPU_ZERO(&set);
  return set;
}

/// The processors of all threads of the process.
cpu_set_t masks_of_all_threads() {
  cpu_set_t all = mask_of(getpid());  // the main thread
  DIR* threads = opendir("/proc/self/task");
  if (threads == nullptr) return all;
  while (const dirent* entry = readdir(threads)) {
    const long thread = std::strtol(entry->d_name, nullptr, 10);
    if (thread <= 0) continue;
    const cpu_set_t mask = mask_of(static_cast<pid_t>(thread));
    CPU_OR(&all, &all, &mask);
  }
  closedir(threads);
  return all;
}

}  // namespace

cpu_set_t process_processors() {
  static std::mutex mutex;
  static cpu_set_t known = masks_of_all_threads();
  const cpu_set_t mine = mask_of(0);
  std::lock_guard<std::mutex> lock(mutex);
  CPU_OR(&known, &known, &mine);
  return known;
}

}  // namespace stn
