// largest_component on the CPU: union-find over runs of one label along z, first within slabs of
// planes, then across the borders of slabs. If there are so many runs that voxels take less memory,
// union-find works on voxels, as on CUDA.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "../core/largest_component_arguments.h"
#include "parallel.h"

namespace semiseg::components {
namespace {

constexpr int kVoxelsPerRun = 4;      // a run takes as much memory as four voxels
constexpr int kSlabVoxels = 1 << 15;  // smaller slabs are not worth a task
constexpr int kSlabsPerThread = 4;    // several, because the object fills slabs unevenly
constexpr int kBlock = 64;            // voxels looked at together: one bit each of a word
constexpr int kContacts = 1024;       // pairs of runs found before they are joined

// Bit i says whether labels[i] differs from labels[i - 1], in the block that begins at `labels`.
template <typename T>
inline std::uint64_t changes(const T* labels) {
  std::uint64_t bits = 0;
#ifdef __SSE2__
  if constexpr (sizeof(T) == 1) {
    for (int i = 0; i < kBlock; i += 16) {
      const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(labels + i));
      const __m128i back = _mm_loadu_si128(reinterpret_cast<const __m128i*>(labels + i - 1));
      bits |= std::uint64_t{0xffffu ^ _mm_movemask_epi8(_mm_cmpeq_epi8(here, back))} << i;
    }
    return bits;
  }
#endif
  for (int i = 0; i < kBlock; ++i) bits |= std::uint64_t{labels[i] != labels[i - 1]} << i;
  return bits;
}

template <typename T>
inline bool all_zero(const T* labels) {
  std::uint64_t any = 0, word;
  for (std::size_t i = 0; i < kBlock; i += sizeof word / sizeof(T)) {
    std::memcpy(&word, labels + i, sizeof word);
    any |= word;
  }
  return any == 0;
}

// Calls visit(begin, end) for each run of a foreground label along z in planes [first, last), in
// scan order, until it returns false.
template <typename T, typename Visit>
bool for_each_run(const T* labels, const Grid& grid, int classes, int first, int last,
                  const Visit& visit) {
  const std::int32_t stop = last * grid.plane();
  std::int32_t open = -1;  // where the unfinished run begins; -1 if there is none
  for (std::int32_t at = first * grid.plane(); at < stop; at += std::min(kBlock, stop - at)) {
    const bool whole = at > 0 && stop - at >= kBlock;
    if (open < 0 && whole && all_zero(labels + at)) continue;
    std::uint64_t bits = 0;
    if (whole) {
      bits = changes(labels + at);
    } else {
      for (int i = at == 0; i < std::min(kBlock, stop - at); ++i)
        bits |= std::uint64_t{labels[at + i] != labels[at + i - 1]} << i;
    }
    const std::int32_t into_row = at % grid.z;
    for (std::int64_t i = into_row == 0 ? 0 : grid.z - into_row; i < std::min(kBlock, stop - at);
         i += grid.z)
      bits |= std::uint64_t{1} << i;
    for (; bits != 0; bits &= bits - 1) {
      const std::int32_t voxel = at + __builtin_ctzll(bits);
      if (open >= 0 && !visit(open, voxel)) return false;
      open = is_foreground(labels[voxel], classes) ? voxel : -1;
    }
  }
  return open < 0 || visit(open, stop);
}

// A run of one label along z, by the places where it begins and ends. Places number the voxels of a
// grid with one more voxel in each row and one more row in each plane. So a run touches a run of an
// earlier row if and only if their places do after a shift by the distance of the rows.
struct Run {
  std::uint32_t begin, end;
  std::int32_t voxel;  // where it begins

  std::int32_t size() const { return static_cast<std::int32_t>(end - begin); }
};

template <typename T>
class Item {
 public:
  Item(const T* labels, T* out, const Grid& grid, int classes)
      : labels_(labels), out_(out), grid_(grid), classes_(classes), best_(classes) {
    // Left uninitialised: only the memory that the runs fill is ever touched.
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

  // ---- runs. A slab numbers its runs from its first voxel divided by kVoxelsPerRun, so that
  // numbers follow the scan order.

  std::int32_t first_run(std::int64_t slab) const {
    return first_plane(slab) * grid_.plane() / kVoxelsPerRun;
  }

  std::int32_t* parents() { return scratch_.get(); }
  Run* runs() { return reinterpret_cast<Run*>(scratch_.get() + grid_.voxels() / kVoxelsPerRun); }

  std::int64_t places_of_row() const { return std::int64_t{grid_.z} + 1; }
  std::int64_t places_of_plane() const { return places_of_row() * (grid_.y > 1 ? grid_.y + 1 : 1); }

  bool solve_by_runs() {
    if ((grid_.x + 2) * places_of_plane() > UINT32_MAX) return false;
    std::vector<std::int32_t> ends(slabs_);
    std::atomic<bool> fits{true};
    for_each_slab([&](std::int64_t slab) {
      ends[slab] = collect(slab);
      if (ends[slab] < 0) fits = false;
    });
    if (!fits) return false;
    if (slabs_ > 1) {
      run_tasks(slabs_ - 1, [&] {
        return [&](std::int64_t slab) { bridge(slab, ends[slab], ends[slab + 1]); };
      });
    }
    for_each_slab([&](std::int64_t slab) {
      for (std::int32_t run = first_run(slab); run < ends[slab]; ++run)
        nominate(run, runs()[run].voxel);
    });
    for_each_slab([&](std::int64_t slab) {
      T* done = out_ + first_plane(slab) * grid_.plane();
      for (std::int32_t run = first_run(slab); run < ends[slab]; ++run) {
        const std::int32_t voxel = runs()[run].voxel;
        if (!wins(run, voxel)) continue;
        std::fill(done, out_ + voxel, T{0});
        done = std::fill_n(out_ + voxel, runs()[run].size(), labels_[voxel]);
      }
      std::fill(done, out_ + first_plane(slab + 1) * grid_.plane(), T{0});
    });
    return true;
  }

  // Finds a slab's runs and joins them. Returns the end of their numbers, or -1 if there are too
  // many.
  std::int32_t collect(std::int64_t slab) {
    const std::int32_t begin = first_run(slab), limit = first_run(slab + 1);
    std::int32_t end = begin;
    if (!for_each_run(labels_, grid_, classes_, first_plane(slab), first_plane(slab + 1),
                      [&](std::int32_t from, std::int32_t to) {
                        if (end == limit) return false;
                        const std::int32_t row = from / grid_.z;
                        const std::int32_t skipped = grid_.y > 1 ? row / grid_.y : 0;
                        const auto place = static_cast<std::uint32_t>(std::int64_t{from} + row +
                                                                      skipped * places_of_row());
                        runs()[end] = {place, place + (to - from), from};
                        parents()[end] = ~(to - from);
                        ++end;
                        return true;
                      }))
      return -1;
    for (int i = 0; i < kEarlierRows; ++i)
      join<Alone>(EarlierRow(i, grid_), begin, end, begin, end);
    return end;
  }

  // Joins a slab, whose runs end before `stop`, with the next one, whose runs end before `end`.
  void bridge(std::int64_t slab, std::int32_t stop, std::int32_t end) {
    const int border = first_plane(slab + 1);
    const auto first_in = [&](int plane, std::int32_t first, std::int32_t last) {
      const auto begins_before = [](const Run& run, std::int64_t place) {
        return run.begin < place;
      };
      const Run* found =
          std::lower_bound(runs() + first, runs() + last, plane * places_of_plane(), begins_before);
      return static_cast<std::int32_t>(found - runs());
    };
    const std::int32_t earlier = first_in(border - 1, first_run(slab), stop);
    const std::int32_t later = first_run(slab + 1);
    for (int i = 1; i < kEarlierRows; ++i)
      join<Shared>(EarlierRow(i, grid_), later, first_in(border + 1, later, end), earlier, stop);
  }

  // Joins the runs [later, later_end) with those of the runs [earlier, earlier_end) that they touch
  // across this earlier row.
  template <typename Access>
  void join(const EarlierRow& row, std::int32_t later, std::int32_t later_end, std::int32_t earlier,
            std::int32_t earlier_end) {
    if (row.reach < 0 || (grid_.y == 1 && row.y != 0)) return;
    const auto back =
        static_cast<std::uint32_t>(row.planes * places_of_plane() - row.y * places_of_row());
    const std::uint32_t reach = row.reach;
    const bool adjacent = classes_ > 2 && reach > 0;
    const Run *const first = runs(), *run = first + later, *other = first + earlier;
    const Run *const run_end = first + later_end, *const other_end = first + earlier_end;
    // Contacts are listed first and joined later. In each step the run that ends first is done.
    // There are no branches, because they could not be predicted.
    struct Contact {
      std::int32_t run, other;
    } contacts[kContacts + 1];  // the last two come in one step
    while (run < run_end && other < other_end) {
      int count = 0;
      while (run < run_end && other < other_end && count < kContacts) {
        const std::uint32_t begin = other->begin + back, end = other->end + back;
        contacts[count] = {static_cast<std::int32_t>(run - first),
                           static_cast<std::int32_t>(other - first)};
        count += (begin < run->end + reach) & (run->begin < end + reach);
        // If both end together, a run of another class may follow at once. It touches at a corner.
        if (adjacent && run->end == end && other + 1 < other_end && other[1].begin == other->end) {
          contacts[count] = contacts[count - 1];
          ++contacts[count++].other;
        }
        const std::int64_t step = (std::int64_t{end} - run->end) >> 63;
        other -= step;
        run += 1 + step;
      }
      for (int i = 0; i < count; ++i) touch<Access>(contacts[i].run, contacts[i].other);
    }
  }

  template <typename Access>
  void touch(std::int32_t run, std::int32_t other) {
    if (classes_ > 2 && labels_[runs()[run].voxel] != labels_[runs()[other].voxel]) return;
    // A run often joins the same run as in its last contact.
    const std::int32_t parent = Access::load(parents() + run);
    if (parent < 0 || (parent != other && parent != Access::load(parents() + other)))
      unite<Access>(parents(), run, other);
  }

  // ---- voxels

  void solve_by_voxels() {
    const auto for_each = [&](const auto& visit) {
      for_each_slab([&](std::int64_t slab) {
        for_each_run(labels_, grid_, classes_, first_plane(slab), first_plane(slab + 1),
                     [&](std::int32_t begin, std::int32_t end) {
                       visit(begin, end);
                       return true;
                     });
      });
    };
    for_each([&](std::int32_t begin, std::int32_t end) {
      parents()[begin] = ~(end - begin);
      std::fill(parents() + begin + 1, parents() + end, begin);
    });
    for_each([&](std::int32_t begin, std::int32_t end) {
      const std::int32_t row = begin / grid_.z;
      for (std::int32_t voxel = begin; voxel < end; ++voxel)
        for_each_contact(labels_, grid_, row / grid_.y, row % grid_.y, voxel % grid_.z,
                         [&](std::int32_t other) { unite<Shared>(parents(), voxel, other); });
    });
    for_each([&](std::int32_t begin, std::int32_t) { nominate(begin, begin); });
    for_each_slab([&](std::int64_t slab) {
      std::fill(out_ + first_plane(slab) * grid_.plane(),
                out_ + first_plane(slab + 1) * grid_.plane(), T{0});
    });
    for_each([&](std::int32_t begin, std::int32_t end) {
      if (wins(begin, begin)) std::fill(out_ + begin, out_ + end, labels_[begin]);
    });
  }

  // ---- both

  // Proposes a component, by its root, as the largest of its class.
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

at::Tensor largest_component(const at::Tensor& given, std::int64_t num_classes,
                             std::int64_t connectivity) {
  const Arguments arguments(given, num_classes, connectivity);
  const auto& [labels, grid, classes] = arguments;
  at::Tensor out = at::empty(labels.sizes(), labels.options());
  if (labels.numel() == 0) return out;
  with_unsigned(labels.element_size(),
                [&, &labels = labels, &grid = grid, classes = classes](auto zero) {
                  using T = decltype(zero);
                  const auto* from = static_cast<const T*>(labels.const_data_ptr());
                  auto* to = static_cast<T*>(out.mutable_data_ptr());
                  const auto solve = [&](std::int64_t item) {
                    const std::int64_t start = item * grid.voxels();
                    Item<T>(from + start, to + start, grid, classes).solve();
                  };
                  // If there are enough items to keep all threads busy, each thread takes whole
                  // items. Otherwise all threads share one item after the other. Inside a task,
                  // run_tasks uses only its own thread.
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

}  // namespace semiseg::components
