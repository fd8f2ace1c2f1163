#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace semiseg {

// Runs tasks 0 .. tasks - 1, each thread taking the next one as soon as it is free: tasks differ in cost, and another
// process may hold a core. `make_worker()` is called once a thread, so that a worker can own its scratch memory.
template <typename MakeWorker>
void run_tasks(std::int64_t tasks, const MakeWorker& make_worker) {
  std::atomic<std::int64_t> next{0};
  const auto threads = std::min<std::int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    auto worker = make_worker();
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) worker(task);
  });
}

}  // namespace semiseg
