// signed_distance on the CPU: sweeps along x over blocks of neighbouring lines, lower envelopes along y and z a plane
// at a time, then one pass that takes roots and scales.

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "../core/signed_distance_arguments.h"
#include "parallel.h"

namespace semiseg {
namespace {

constexpr int kScanLanes = 512;  // lines swept together: their column of a crop stays in the second-level cache
constexpr int kTile = 16;        // strided lines gathered together: one cache line of 32-bit values

// Solves all lines along y, then all lines along z, of one x-plane in place.
template <typename T>
class EnvelopePlane {
 public:
  EnvelopePlane(const Volumes& size, const Units<T>& units)
      : size_(size), units_(units), lines_(kTile * size.y), solved_(std::max(kTile * size.y, size.z)) {
    hull_.resize(std::max(size.y, size.z));
  }

  void operator()(T* plane) {
    const int ny = size_.y, nz = size_.z;
    const Line<int> hull{hull_.data(), 1};
    for (int z = 0; ny > 1 && z < nz; z += kTile) {
      const int width = std::min(kTile, nz - z);
      for (int y = 0; y < ny; ++y)
        for (int k = 0; k < width; ++k) lines_[k * ny + y] = plane[std::int64_t{y} * nz + z + k];
      for (int k = 0; k < width; ++k) solve_line<T>({&lines_[k * ny], 1}, {&solved_[k * ny], 1}, hull, ny, units_.y);
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

// The search, once an instruction set.
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

// The same for small integers, by search: faster where most distances are short against an instruction's lanes. Exact
// where everything lies nearer than Reach<int16_t>::kFar.
class SearchPlane {
 public:
  SearchPlane(const Volumes& size, const Units<std::int16_t>&)
      : size_(size), rows_(std::int64_t{size.y} * padded()), row_(padded() + 2 * margin()) {
#ifdef SEMISEG_X86
    // What torch's own kernels use, so that ATEN_CPU_CAPABILITY chooses here too.
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
  int margin() const { return std::min<int>(size_.z, Reach<std::int16_t>::kFarSteps) + 2 * kWidest; }

  Volumes size_;
  std::vector<std::int16_t> rows_, row_;
  decltype(&portable::search_plane) search_ = portable::search_plane;
};

// Signed squared distances of every item, and each item's peaks.
template <typename T, typename Plane>
std::vector<Peak<T>> signed_squares(const std::uint8_t* mask, T* out, const Volumes& size, const Units<T>& units) {
  const std::int64_t plane = size.plane(), blocks = at::divup(plane, kScanLanes);
  run_tasks(size.items * blocks, [&] {
    return [&](std::int64_t task) {
      const std::int64_t lane = task % blocks * kScanLanes, at = task / blocks * size.voxels() + lane;
      scan_lines<T>(mask + at, out + at, size.x, plane, std::min<std::int64_t>(kScanLanes, plane - lane), units.x);
    };
  });

  std::vector<Peak<T>> peaks(size.items, Peak<T>{0, 0});
  std::mutex mutex;
  run_tasks(size.items * size.x, [&] {
    return [&, solve = Plane(size, units)](std::int64_t task) mutable {
      T* values = out + task * plane;
      solve(values);
      Peak<T> peak{0, 0};
      for (std::int64_t i = 0; i < plane; ++i) peak.see(values[i]);
      const std::lock_guard<std::mutex> lock(mutex);
      peaks[task / size.x].see(peak.outside);
      peaks[task / size.x].see(-peak.inside);
    };
  });
  return peaks;
}

// Takes roots. With equal spacing the inner boundary is where the squared distance is 1; else the mask tells.
template <typename T>
void finish(const std::uint8_t* mask, const T* squares, float* out, const Volumes& size, float unit_length,
            bool normalized, const std::vector<Peak<T>>& peaks) {
  const std::int64_t plane = size.plane();
  run_tasks(size.items * size.x, [&] {
    return [&](std::int64_t task) {
      const std::int64_t item = task / size.x;
      const T* v = squares + task * plane;
      float* to = out + task * plane;
      const Peak<float> longest{std::sqrt(static_cast<float>(peaks[item].inside)),
                                std::sqrt(static_cast<float>(peaks[item].outside))};
      if (!normalized) {
        for (std::int64_t i = 0; i < plane; ++i) to[i] = distance(v[i], unit_length);
      } else if constexpr (std::is_integral_v<T>) {
        for (std::int64_t i = 0; i < plane; ++i) to[i] = normalized_distance(v[i], v[i] == -1, longest);
      } else {
        const std::uint8_t* volume = mask + item * size.voxels();
        const int x = static_cast<int>(task % size.x);
        for (int y = 0; y < size.y; ++y)
          for (int z = 0; z < size.z; ++z, ++v, ++to)
            *to = normalized_distance(*v, on_inner_boundary(volume, size, x, y, z), longest);
      }
    };
  });
}

// Whether 16 bits are worth trying: they are enough for an object within half the diagonal of every corner.
bool may_be_near(const Volumes& size) {
  const double x = size.x - 1, y = size.y - 1, z = size.z - 1;
  return (x * x + y * y + z * z) / 4 < Reach<std::int16_t>::kFar;
}

// The result, or an undefined tensor where T turns out too narrow.
template <typename T, typename Plane>
at::Tensor signed_distance_as(const SignedDistanceArguments& arguments, bool normalized) {
  const auto& [mask, size, spacing] = arguments;
  const Units<T> units(spacing);
  const at::Tensor squares = at::empty(mask.sizes(), mask.options().dtype(c10::CppTypeToScalarType<T>::value));
  const auto* voxels = mask.const_data_ptr<std::uint8_t>();
  T* values = squares.mutable_data_ptr<T>();
  const auto peaks = signed_squares<T, Plane>(voxels, values, size, units);
  const auto inexact = [](const Peak<T>& peak) {  // an item of one label is far for another reason
    return peak.inside > 0 && peak.outside > 0 && larger(peak.inside, peak.outside) == Reach<T>::kFar;
  };
  if (std::any_of(peaks.begin(), peaks.end(), inexact)) return {};
  at::Tensor out = at::empty(mask.sizes(), mask.options().dtype(at::kFloat));
  finish(voxels, values, out.mutable_data_ptr<float>(), size, units.length, normalized, peaks);
  return out;
}

at::Tensor signed_distance(const at::Tensor& mask, at::ArrayRef<double> spacing, bool normalized) {
  const SignedDistanceArguments arguments(mask, spacing);
  if (mask.numel() == 0) return at::empty(mask.sizes(), mask.options().dtype(at::kFloat));
  if (!arguments.spacing.equal()) return signed_distance_as<float, EnvelopePlane<float>>(arguments, normalized);
  if (may_be_near(arguments.size)) {
    at::Tensor out = signed_distance_as<std::int16_t, SearchPlane>(arguments, normalized);
    if (out.defined()) return out;
  }
  return signed_distance_as<std::int32_t, EnvelopePlane<std::int32_t>>(arguments, normalized);
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) { m.impl("signed_distance", signed_distance); }

}  // namespace semiseg
