// largest_component on the CPU: union-find over runs of one label along z, slabs of planes at a time, then across the
// borders of slabs. Where there are so many runs that voxels need less memory, union-find over voxels, as on CUDA.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "../core/largest_component_arguments.h"
#include "parallel.h"

namespace semiseg {
namespace {

constexpr int kVoxelsPerRun = 3;          // a run takes three numbers, so runs never take more than voxels would
constexpr int kSlabVoxels = 1 << 15;      // fewer are not worth a task
constexpr int kSlabsPerThread = 4;        // a few, since the object fills some slabs more than others

// The first element of [from, end) that is not `value`; `end` if all are. Eight bytes at a time.
template <typename T>
inline std::int32_t first_other(const T* elements, std::int32_t from, std::int32_t end, T value) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lowest bits are the first element's");
  constexpr int kLanes = 8 / sizeof(T), kBlock = 8 * kLanes;
  const std::uint64_t pattern = value * (~std::uint64_t{0} / static_cast<T>(~T{0}));
  const auto difference = [&](std::int32_t i) {
    std::uint64_t word;
    std::memcpy(&word, elements + i, sizeof word);
    return word ^ pattern;
  };
  while (end - from >= kLanes) {
    if (const std::uint64_t found = difference(from)) return from + __builtin_ctzll(found) / (8 * sizeof(T));
    from += kLanes;
    for (; end - from >= kBlock; from += kBlock) {
      std::uint64_t any = 0;
      for (int k = 0; k < kBlock; k += kLanes) any |= difference(from + k);
      if (any) break;
    }
  }
  while (from < end && elements[from] == value) ++from;
  return from;
}

// Calls visit(x, y, begin, end) for each run of a foreground label in planes [first, last), in scan order, until it
// returns false.
template <typename T, typename Visit>
bool for_each_run(const T* labels, const Grid& grid, int classes, int first, int last, const Visit& visit) {
  const std::int32_t stop = last * grid.plane();
  std::int32_t at = first * grid.plane(), row_end = at;
  int x = first, y = 0;
  while ((at = first_other(labels, at, stop, T{0})) < stop) {
    if (at >= row_end) {
      const std::int32_t row = at / grid.z;
      x = row / grid.y;
      y = row % grid.y;
      row_end = row * grid.z + grid.z;
    }
    const std::int32_t end = first_other(labels, at + 1, row_end, labels[at]);
    if (is_foreground(labels[at], classes) && !visit(x, y, at, end)) return false;
    at = end;
  }
  return true;
}

struct Run {
  std::int32_t begin, end;
};

template <typename T>
class Item {
 public:
  Item(const T* labels, T* out, const Grid& grid, int classes)
      : labels_(labels), out_(out), grid_(grid), classes_(classes), best_(classes) {
    // Uninitialised: of the runs' memory only what they fill is ever touched.
    scratch_.reset(new std::int32_t[grid.voxels()]);
    const int wanted = at::in_parallel_region() ? 1 : kSlabsPerThread * at::get_num_threads();
    const int worth = std::max(1, grid.voxels() / kSlabVoxels);
    slabs_ = at::get_num_threads() == 1 ? 1 : std::min({wanted, worth, grid.x});
  }

  void solve() {
    if (!solve_by_runs()) solve_by_voxels();
  }

 private:
  template <typename Task>
  void for_each_slab(const Task& task) {
    run_tasks(slabs_, [&] { return task; });
  }

  int first_plane(std::int64_t slab) const { return static_cast<int>(slab * grid_.x / slabs_); }

  // ---- runs. Those of a slab are numbered from its first voxel over kVoxelsPerRun, so that numbers follow the scan.

  std::int32_t first_run(std::int64_t slab) const { return first_plane(slab) * grid_.plane() / kVoxelsPerRun; }

  std::int32_t* parents() { return scratch_.get(); }
  Run* runs() { return reinterpret_cast<Run*>(scratch_.get() + grid_.voxels() / kVoxelsPerRun); }

  bool solve_by_runs() {
    std::vector<std::int32_t> ends(slabs_);
    std::atomic<bool> fits{true};
    for_each_slab([&](std::int64_t slab) {
      ends[slab] = collect(slab);
      if (ends[slab] < 0) fits = false;
    });
    if (!fits) return false;
    if (slabs_ > 1) {
      run_tasks(slabs_ - 1, [&] { return [&](std::int64_t slab) { join(slab + 1, ends[slab], ends[slab + 1]); }; });
    }
    for_each_slab([&](std::int64_t slab) {
      for (std::int32_t run = first_run(slab); run < ends[slab]; ++run) nominate(run, runs()[run].begin);
    });
    for_each_slab([&](std::int64_t slab) {
      std::int32_t done = first_plane(slab) * grid_.plane();
      for (std::int32_t run = first_run(slab); run < ends[slab]; ++run) {
        const auto [begin, end] = runs()[run];
        if (!wins(run, begin)) continue;
        std::fill(out_ + done, out_ + begin, T{0});
        std::fill(out_ + begin, out_ + end, labels_[begin]);
        done = end;
      }
      std::fill(out_ + done, out_ + first_plane(slab + 1) * grid_.plane(), T{0});
    });
    return true;
  }

  // Joins a run with those of its label that it touches in an earlier row, among runs [*cursor, stop). The next run to
  // come touches nothing before *cursor.
  template <typename Access>
  void join_row(std::int32_t run, std::int32_t row_begin, const EarlierRow& row, std::int32_t* cursor,
                std::int32_t stop) {
    const auto [begin, end] = runs()[run];
    const std::int32_t from = std::max(begin - row.reach, row_begin) - row.back;
    const std::int32_t to = std::min(end + row.reach, row_begin + grid_.z) - row.back;
    while (*cursor < stop && runs()[*cursor].end <= from) ++*cursor;
    for (std::int32_t other = *cursor; other < stop && runs()[other].begin < to; ++other)
      if (classes_ == 2 || labels_[runs()[other].begin] == labels_[begin]) unite<Access>(parents(), run, other);
  }

  // Finds a slab's runs and joins them. Returns the end of their numbers, -1 where there are too many.
  std::int32_t collect(std::int64_t slab) {
    const int first = first_plane(slab), last = first_plane(slab + 1);
    const std::int32_t begin = first_run(slab), limit = first_run(slab + 1);
    std::int32_t run = begin;
    std::int32_t cursors[kEarlierRows] = {begin, begin, begin, begin};
    const EarlierRow rows[kEarlierRows] = {{0, grid_}, {1, grid_}, {2, grid_}, {3, grid_}};
    const bool fits = for_each_run(labels_, grid_, classes_, first, last, [&](int x, int y, auto from, auto to) {
      if (run == limit) return false;
      runs()[run] = {from, to};
      parents()[run] = ~(to - from);
      const std::int32_t row_begin = (x * grid_.y + y) * grid_.z;
      for (int i = 0; i < kEarlierRows; ++i)
        if (rows[i].exists(grid_, x - first, y)) join_row<Alone>(run, row_begin, rows[i], &cursors[i], run);
      ++run;
      return true;
    });
    return fits ? run : -1;
  }

  // Joins the runs of a slab's first plane with those of the plane before.
  void join(std::int64_t slab, std::int32_t stop, std::int32_t end) {
    const std::int32_t border = first_plane(slab) * grid_.plane();
    const auto ends_by = [](const Run& run, std::int32_t voxel) { return run.end <= voxel; };
    const auto before = std::lower_bound(runs() + first_run(slab - 1), runs() + stop, border - grid_.plane(), ends_by);
    for (int i = 0; i < kEarlierRows; ++i) {
      const EarlierRow row(i, grid_);
      auto cursor = static_cast<std::int32_t>(before - runs());
      if (row.planes == 0) continue;
      for (std::int32_t run = first_run(slab); run < end && runs()[run].begin < border + grid_.plane(); ++run) {
        const int y = (runs()[run].begin - border) / grid_.z;
        if (row.exists(grid_, 1, y)) join_row<Shared>(run, border + y * grid_.z, row, &cursor, stop);
      }
    }
  }

  // ---- voxels

  void solve_by_voxels() {
    const auto for_each = [&](const auto& visit) {
      for_each_slab([&](std::int64_t slab) {
        for_each_run(labels_, grid_, classes_, first_plane(slab), first_plane(slab + 1),
                     [&](int x, int y, std::int32_t begin, std::int32_t end) {
                       visit(x, y, begin, end);
                       return true;
                     });
      });
    };
    for_each([&](int, int, std::int32_t begin, std::int32_t end) {
      parents()[begin] = ~(end - begin);
      std::fill(parents() + begin + 1, parents() + end, begin);
    });
    for_each([&](int x, int y, std::int32_t begin, std::int32_t end) {
      for (std::int32_t voxel = begin; voxel < end; ++voxel)
        for_each_contact(labels_, grid_, x, y, voxel % grid_.z,
                         [&](std::int32_t other) { unite<Shared>(parents(), voxel, other); });
    });
    for_each([&](int, int, std::int32_t begin, std::int32_t) { nominate(begin, begin); });
    for_each_slab([&](std::int64_t slab) {
      std::fill(out_ + first_plane(slab) * grid_.plane(), out_ + first_plane(slab + 1) * grid_.plane(), T{0});
    });
    for_each([&](int, int, std::int32_t begin, std::int32_t end) {
      if (wins(begin, begin)) std::fill(out_ + begin, out_ + end, labels_[begin]);
    });
  }

  // ---- both

  // Enters a component, by its root, for the largest of its class.
  void nominate(std::int32_t element, std::int32_t voxel) {
    const std::int32_t held = parents()[element];
    if (held < 0) propose(&best_[labels_[voxel]], key_of(~held, element));
  }

  bool wins(std::int32_t element, std::int32_t voxel) {
    return find_root<Shared>(parents(), element) == root_of(best_[labels_[voxel]]);
  }

  const T* labels_;
  T* out_;
  Grid grid_;
  int classes_, slabs_;
  std::unique_ptr<std::int32_t[]> scratch_;
  std::vector<Key> best_;
};

at::Tensor largest_component(const at::Tensor& given, std::int64_t num_classes, std::int64_t connectivity) {
  const LargestComponentArguments arguments(given, num_classes, connectivity);
  const auto& [labels, grid, classes] = arguments;
  at::Tensor out = at::empty(labels.sizes(), labels.options());
  if (labels.numel() == 0) return out;
  with_unsigned(labels.element_size(), [&, &labels = labels, &grid = grid, classes = classes](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const T*>(labels.const_data_ptr());
    auto* to = static_cast<T*>(out.mutable_data_ptr());
    const auto solve = [&](std::int64_t item) {
      const std::int64_t start = item * grid.voxels();
      Item<T>(from + start, to + start, grid, classes).solve();
    };
    // A thread an item, without waiting for each other, where that keeps all busy; else all threads on one item after
    // the other. Inside a task run_tasks runs on its own thread.
    const std::int64_t items = labels.size(0), threads = at::get_num_threads();
    if (items % threads == 0 || items >= 4 * threads) {
      run_tasks(items, [&] { return solve; });
    } else {
      for (std::int64_t item = 0; item < items; ++item) solve(item);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) { m.impl("largest_component", largest_component); }

}  // namespace semiseg
