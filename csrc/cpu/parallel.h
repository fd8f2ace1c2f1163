#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace semiseg {

// Runs tasks 0 .. tasks - 1. Each thread begins with its own share of neighbouring tasks. The
// shares are the same at every call, so that a thread finds its data in its caches again. Then it
// helps the others, because tasks differ in cost and another process may hold a core.
// `make_worker()` is called once per thread, so that a worker can own its scratch memory.
template <typename MakeWorker>
void run_tasks(std::int64_t tasks, const MakeWorker& make_worker) {
  struct alignas(64) Share {
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };
  const auto threads = std::min<std::int64_t>(tasks, at::get_num_threads());
  std::vector<Share> shares(threads);
  for (std::int64_t i = 0; i < threads; ++i) {
    shares[i].next = tasks * i / threads;
    shares[i].end = tasks * (i + 1) / threads;
  }
  at::parallel_for(0, threads, 1, [&](std::int64_t own, std::int64_t) {
    auto worker = make_worker();
    for (std::int64_t i = 0; i < threads; ++i) {
      Share& share = shares[(own + i) % threads];
      for (std::int64_t task;
           (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
        worker(task);
    }
  });
}

}  // namespace semiseg
