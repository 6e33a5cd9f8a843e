#include "kernels/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/processors.hpp"

namespace stn {
namespace {

/// One call of parallel_for, on its caller's stack until every helper has left it.
struct Job {
  RangeTask task;
  int64_t count;
  int64_t piece;
  int wanted;                   ///< helpers that may still join; guarded by the pool's mutex
  std::atomic<int> helpers{0};  ///< active helpers; changed only under the pool's mutex
  std::atomic<int64_t> next{0};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= count) return;
      task.run(task.context, begin, std::min(begin + piece, count));
    }
  }
};

class Pool {
 public:
  Pool() : owner_(getpid()) {}

  pid_t owner() const { return owner_; }

  /// Starts threads until there is one helper per processor but the caller's, and lets all of them run on all
  /// processors: a thread inherits the mask of the caller that it was started by, which may be pinned. Callers take
  /// turns.
  void grow_to(const cpu_set_t& processors) {
    const auto wanted = static_cast<size_t>(std::max(1, CPU_COUNT(&processors))) - 1;
    while (threads_.size() < wanted) {
      try {
        std::thread thread([this] { serve(); });
        threads_.push_back(thread.native_handle());
        thread.detach();
      } catch (const std::system_error&) {
        break;  // fewer threads are slower, but correct
      }
    }
    // The threads never end, so their handles stay valid. One that cannot be moved stays where it is.
    for (pthread_t thread : threads_) (void)pthread_setaffinity_np(thread, sizeof processors, &processors);
  }

  void run(Job& job) {
    const bool one_helper = job.wanted == 1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(&job);
      pending_.fetch_add(1, std::memory_order_release);
    }
    if (one_helper) {
      work_.notify_one();
    } else {
      work_.notify_all();
    }
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    remove(job);  // from here on no helper joins
    if (job.helpers == 0) return;
    // The helpers are running their last pieces: spinning is usually faster than sleeping.
    lock.unlock();
    spin_until([&] { return job.helpers.load(std::memory_order_acquire) == 0; });
    lock.lock();
    left_.wait(lock, [&] { return job.helpers == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (jobs_.empty()) {
        // Spin first, for callers that warp repeatedly: waking a sleeping thread takes tens of microseconds.
        lock.unlock();
        spin_until([this] { return pending_.load(std::memory_order_acquire) != 0; });
        lock.lock();
        work_.wait(lock, [&] { return !jobs_.empty(); });
      }
      Job& job = *jobs_.front();
      ++job.helpers;
      if (--job.wanted == 0) remove(job);
      lock.unlock();
      job.work();
      lock.lock();
      remove(job);  // all of its work is taken
      if (--job.helpers == 0) left_.notify_all();
    }
  }

  template <class Condition>
  static void spin_until(Condition condition) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (!condition() && std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 32; ++i) relax();
    }
  }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  void remove(Job& job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), &job);
    if (found == jobs_.end()) return;
    jobs_.erase(found);
    pending_.fetch_sub(1, std::memory_order_release);
  }

  const pid_t owner_;
  std::vector<pthread_t> threads_;
  std::mutex mutex_;
  std::condition_variable work_, left_;
  std::deque<Job*> jobs_;  ///< jobs that helpers may join
  std::atomic<int> pending_{0};
};

/// The process's pool, with threads for `processors`. A forked child does not inherit its parent's threads, so it gets
/// a new pool.
Pool& pool(const cpu_set_t& processors) {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static cpu_set_t served;
  std::lock_guard<std::mutex> lock(mutex);
  const bool created = current == nullptr || current->owner() != getpid();
  if (created) current = new Pool();  // never deleted: its threads may outlive static destructors
  if (created || !CPU_EQUAL(&served, &processors)) current->grow_to(processors);
  served = processors;
  return *current;
}

}  // namespace

void parallel_for(const RangeTask& task, int64_t count, int64_t grain, int threads) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t tasks = (count + grain - 1) / grain;
  if (threads <= 1 || tasks <= 1) {
    task.run(task.context, 0, count);
    return;
  }
  const cpu_set_t processors = process_processors();
  const int helpers = static_cast<int>(std::min<int64_t>({threads - 1, tasks - 1, CPU_COUNT(&processors) - 1}));
  if (helpers <= 0) {
    task.run(task.context, 0, count);
    return;
  }
  // About eight pieces per thread: enough to balance a slow thread, few enough to avoid contention on the counter.
  const int64_t piece = std::max(grain, count / (8 * (helpers + 1)));
  Job job{task, count, piece, helpers};
  pool(processors).run(job);
}

}  // namespace stn
