// signed_distance on the CPU. Each item goes through three stages: sweeps along x, over blocks of
// neighbouring lines; then lines along y and z, one plane at a time, by search in 16 bits if that
// is enough and by lower envelope otherwise; then roots and scales.

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "../core/signed_distance_arguments.h"
#include "clones.h"
#include "parallel.h"

namespace semiseg {
namespace {

constexpr int kScanLanes = 512;  // lines swept together, for the second-level cache
constexpr int kTile = 16;        // strided lines gathered together: a cache line of 32-bit values

// Solves all lines along y, then all lines along z, of one x-plane in place.
template <typename T>
class EnvelopePlane {
 public:
  EnvelopePlane(const Volumes& size, const Units<T>& units)
      : size_(size),
        units_(units),
        lines_(kTile * size.y),
        solved_(std::max(kTile * size.y, size.z)) {
    hull_.resize(std::max(size.y, size.z));
  }

  void operator()(T* plane) {
    const int ny = size_.y, nz = size_.z;
    const Line<int> hull{hull_.data(), 1};
    for (int z = 0; ny > 1 && z < nz; z += kTile) {
      const int width = std::min(kTile, nz - z);
      for (int y = 0; y < ny; ++y)
        for (int k = 0; k < width; ++k) lines_[k * ny + y] = plane[std::int64_t{y} * nz + z + k];
      for (int k = 0; k < width; ++k)
        solve_line<T>({&lines_[k * ny], 1}, {&solved_[k * ny], 1}, hull, ny, units_.y);
      for (int y = 0; y < ny; ++y)
        for (int k = 0; k < width; ++k) plane[std::int64_t{y} * nz + z + k] = solved_[k * ny + y];
    }
    for (int y = 0; nz > 1 && y < ny; ++y) {
      T* line = plane + std::int64_t{y} * nz;
      solve_line<T>({line, 1}, {solved_.data(), 1}, hull, nz, units_.z);
      std::copy_n(solved_.data(), nz, line);
    }
  }

 private:
  Volumes size_;
  Units<T> units_;
  std::vector<T> lines_, solved_;
  std::vector<int> hull_;
};

// The search, compiled once for each instruction set.
namespace portable {
constexpr int kLanes = 8;
#include "signed_distance_search.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SEMISEG_X86

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
constexpr int kLanes = 16;
#include "signed_distance_search.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512bw")
namespace avx512 {
constexpr int kLanes = 32;
#include "signed_distance_search.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

// The same for small integers, by search: faster if most distances are short compared with the
// lanes of an instruction. Exact if every squared distance is below Reach<int16_t>::kFar.
class SearchPlane {
 public:
  SearchPlane(const Volumes& size, const Units<std::int16_t>&)
      : size_(size), rows_(std::int64_t{size.y} * padded()), row_(padded() + 2 * margin()) {
#ifdef SEMISEG_X86
    // The instruction set of torch's own kernels, so that ATEN_CPU_CAPABILITY works here too.
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX2") search_ = avx2::search_plane;
    if (capability == "AVX512") search_ = avx512::search_plane;
#endif
  }

  void operator()(std::int16_t* plane) {
    search_(plane, size_.y, size_.z, padded(), margin(), rows_.data(), row_.data());
  }

 private:
  static constexpr int kWidest = 32;

  int padded() const { return at::divup(size_.z, kWidest) * kWidest; }
  int margin() const {
    return std::min<int>(size_.z, Reach<std::int16_t>::kFarSteps) + 2 * kWidest;
  }

  Volumes size_;
  std::vector<std::int16_t> rows_, row_;
  decltype(&portable::search_plane) search_ = portable::search_plane;
};

// Signed squared distances of one item, and their peaks.
template <typename T, typename Plane>
Peak<T> signed_squares(const std::uint8_t* mask, T* out, const Volumes& size,
                       const Units<T>& units) {
  const std::int64_t plane = size.plane();
  run_tasks(at::divup(plane, kScanLanes), [&] {
    return [&](std::int64_t block) {
      const std::int64_t lane = block * kScanLanes;
      const int lanes = static_cast<int>(std::min<std::int64_t>(kScanLanes, plane - lane));
      scan_lines<T>(mask + lane, out + lane, size.x, plane, lanes, units.x);
    };
  });

  Peak<T> peak{0, 0};
  std::mutex mutex;
  run_tasks(size.x, [&] {
    return [&, solve = Plane(size, units)](std::int64_t x) mutable {
      T* values = out + x * plane;
      solve(values);
      Peak<T> here{0, 0};
      for (std::int64_t i = 0; i < plane; ++i) here.see(values[i]);
      const std::lock_guard<std::mutex> lock(mutex);
      peak.see(here.outside);
      peak.see(-here.inside);
    };
  });
  return peak;
}

template <typename T>
SEMISEG_AVX2_TOO void take_roots(const T* squares, float* out, std::int64_t count,
                                 float unit_length) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = distance(squares[i], unit_length);
}

// With equal spacing the inner boundary is where the squared distance is 1.
template <typename T>
SEMISEG_AVX2_TOO void normalize(const T* squares, float* out, std::int64_t count,
                                Peak<float> longest) {
  for (std::int64_t i = 0; i < count; ++i)
    out[i] = normalized_distance(squares[i], squares[i] == -1, longest);
}

// With any spacing, the mask says where the inner boundary is. `volume` is the item's mask, `x` the
// plane.
void normalize_by_mask(const std::uint8_t* volume, const float* squares, float* out,
                       const Volumes& size, int x, Peak<float> longest) {
  for (int y = 0; y < size.y; ++y)
    for (int z = 0; z < size.z; ++z, ++squares, ++out)
      *out = normalized_distance(*squares, on_inner_boundary(volume, size, x, y, z), longest);
}

// Whether 16 bits are worth trying: they are enough if the object lies within half the diagonal of
// every corner.
bool may_be_near(const Volumes& size) {
  const double x = size.x - 1, y = size.y - 1, z = size.z - 1;
  return (x * x + y * y + z * z) / 4 < Reach<std::int16_t>::kFar;
}

// Solves one item. Returns false if T turns out to be too narrow for it.
template <typename T, typename Plane>
bool solve_item(const std::uint8_t* mask, float* out, const Volumes& size, const Spacing& spacing,
                bool normalized) {
  const Units<T> units(spacing);
  const std::unique_ptr<T[]> squares(new T[size.voxels()]);
  const Peak<T> peak = signed_squares<T, Plane>(mask, squares.get(), size, units);
  // If the item has both labels, kFar means that T is too narrow. If it has only one label, the
  // distance is infinite, which is final.
  if (peak.inside > 0 && peak.outside > 0 && larger(peak.inside, peak.outside) == Reach<T>::kFar)
    return false;

  const Peak<float> longest{std::sqrt(static_cast<float>(peak.inside)),
                            std::sqrt(static_cast<float>(peak.outside))};
  const std::int64_t plane = size.plane();
  run_tasks(size.x, [&] {
    return [&](std::int64_t x) {
      const T* from = squares.get() + x * plane;
      float* to = out + x * plane;
      if (!normalized) {
        take_roots(from, to, plane, units.length);
      } else if constexpr (std::is_integral_v<T>) {
        normalize(from, to, plane, longest);
      } else {
        normalize_by_mask(mask, from, to, size, static_cast<int>(x), longest);
      }
    };
  });
  return true;
}

at::Tensor signed_distance(const at::Tensor& given, at::ArrayRef<double> steps, bool normalized) {
  const SignedDistanceArguments arguments(given, steps);
  const auto& [mask, size, spacing] = arguments;
  at::Tensor out = at::empty(mask.sizes(), mask.options().dtype(at::kFloat));
  if (mask.numel() == 0) return out;
  const auto* from = mask.const_data_ptr<std::uint8_t>();
  auto* to = out.mutable_data_ptr<float>();

  const auto solve = [&, &size = size, &spacing = spacing](std::int64_t item) {
    const auto run = [&](auto solver) {
      return solver(from + item * size.voxels(), to + item * size.voxels(), size, spacing,
                    normalized);
    };
    if (!spacing.equal()) {
      run(solve_item<float, EnvelopePlane<float>>);
    } else if (!may_be_near(size) || !run(solve_item<std::int16_t, SearchPlane>)) {
      run(solve_item<std::int32_t, EnvelopePlane<std::int32_t>>);
    }
  };
  // If there are enough items to keep all threads busy, each thread takes whole items. Otherwise
  // all threads share one item after the other. Inside a task, run_tasks uses only its own thread.
  const int threads = at::get_num_threads();
  if (size.items % threads == 0 || size.items >= 4 * threads) {
    run_tasks(size.items, [&] { return solve; });
  } else {
    for (std::int64_t item = 0; item < size.items; ++item) solve(item);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) { m.impl("signed_distance", signed_distance); }

}  // namespace semiseg
