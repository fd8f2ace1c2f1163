#pragma once

// The exact signed Euclidean distance transform, one axis at a time.
//
// Every voxel holds one signed number v: its squared distance to the nearest voxel of the other
// label, positive outside the object and negative inside. So both sides share one array and one
// pass an axis. A voxel i of sign s reaches the other label through voxel j of its line at the cost
// max(s * v[j], 0) + (i - j)^2, because a voxel j of the other label is itself the goal. Along the
// first axis v follows from two sweeps. Along every further axis v[i] is the lowest of those
// parabolas (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012; the sign, the runs and the
// arithmetic without division are this project's).
//
// T is int32_t for equal spacing (exact) and float for unequal spacing; the CPU also uses int16_t
// for small volumes.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace semiseg {

// A batch of volumes, x slowest and z contiguous; a batch of images has y == 1.
struct Volumes {
  std::int64_t items;
  int x, y, z;

  SEMISEG_HOST_DEVICE std::int64_t plane() const { return std::int64_t{y} * z; }
  SEMISEG_HOST_DEVICE std::int64_t voxels() const { return x * plane(); }
};

// The size of a voxel. If it is equal along all axes, squared distances are integers in units of
// its square.
struct Spacing {
  double x, y, z;

  bool equal() const { return x == y && y == z; }
};

// The square of a step along each axis, in units of T, and the length of that unit.
template <typename T>
struct Units {
  T x = 1, y = 1, z = 1;
  float length = 1;

  explicit Units(const Spacing& spacing) {
    if constexpr (std::is_integral_v<T>) {
      length = static_cast<float>(spacing.x);
    } else {
      x = static_cast<T>(spacing.x * spacing.x);
      y = static_cast<T>(spacing.y * spacing.y);
      z = static_cast<T>(spacing.z * spacing.z);
    }
  }
};

// kFarSteps: a voxel this many steps away along the first axis, or more, counts as out of reach.
// kFar: the squared distance written for it. Below these limits nothing overflows: int32_t holds
// any volume whose squared diagonal is below 2^30. If the farthest voxel lies at kFar or beyond, an
// int16_t map is not exact and must be computed again as int32_t.
template <typename T>
struct Reach;
template <>
struct Reach<std::int16_t> {
  static constexpr std::int16_t kFarSteps = 176, kFar = 176 * 176;
};
template <>
struct Reach<std::int32_t> {
  static constexpr std::int32_t kFarSteps = 1 << 15, kFar = INT32_MAX;
};
template <>
struct Reach<float> {
  static constexpr float kFarSteps = 1 << 24, kFar = HUGE_VALF;
};

// The type in which parabolas of T are compared: wide enough for a squared distance times an
// extent.
template <typename T>
struct Comparison {
  using Type = double;
};
template <>
struct Comparison<std::int32_t> {
  using Type = std::int64_t;
};

// Steps from a voxel to the other label in one direction, given the steps of its neighbour in that
// direction.
template <typename T>
SEMISEG_HOST_DEVICE T steps_via(bool same_label, T steps_of_neighbour) {
  const T next = static_cast<T>(steps_of_neighbour + 1);
  return same_label ? smaller(next, Reach<T>::kFarSteps) : T{1};
}

template <typename T>
SEMISEG_HOST_DEVICE T signed_square(T steps, bool inside, T unit) {
  const T square =
      steps >= Reach<T>::kFarSteps ? Reach<T>::kFar : static_cast<T>(steps * steps * unit);
  return inside ? static_cast<T>(-square) : square;
}

// First axis. Fills `lanes` neighbouring lines of n voxels, element i of line k at i * stride + k,
// with signed squared distances along the line only, in units of the squared spacing `unit` (1 for
// integers).
template <typename T>
SEMISEG_HOST_DEVICE void scan_lines(const std::uint8_t* mask, T* out, int n, std::ptrdiff_t stride,
                                    int lanes, T unit) {
  for (int k = 0; k < lanes; ++k) out[k] = Reach<T>::kFarSteps;
  for (int i = 1; i < n; ++i) {
    const std::uint8_t *here = mask + i * stride, *back = here - stride;
    T* steps = out + i * stride;
    for (int k = 0; k < lanes; ++k)
      steps[k] = steps_via((here[k] != 0) == (back[k] != 0), steps[k - stride]);
  }
  // The backward sweep takes the smaller count of both directions, and squares a value once the
  // next line no longer needs it.
  for (int i = n - 2; i >= 0; --i) {
    const std::uint8_t *here = mask + i * stride, *ahead = here + stride;
    T *steps = out + i * stride, *done = steps + stride;
    for (int k = 0; k < lanes; ++k) {
      steps[k] = smaller(steps[k], steps_via((here[k] != 0) == (ahead[k] != 0), done[k]));
      done[k] = signed_square(done[k], ahead[k] != 0, unit);
    }
  }
  for (int k = 0; k < lanes; ++k) out[k] = signed_square(out[k], mask[k] != 0, unit);
}

// First axis, one voxel: steps to the nearest voxel of the other label in a column of n voxels;
// kFarSteps if there is none. The column's foreground is given as bits: `words[j * stride]` holds
// voxels 32 j to 32 j + 31.
template <typename T>
SEMISEG_HOST_DEVICE T steps_among_bits(const std::uint32_t* words, std::ptrdiff_t stride, int n,
                                       int i) {
  const int home = i / 32, last = (n - 1) / 32;
  const std::uint32_t same = words[home * stride] >> (i % 32) & 1 ? 0xFFFFFFFFu : 0u;
  const auto others = [&](int j) {
    const std::uint32_t bits = words[j * stride] ^ same;
    return j < last || n % 32 == 0 ? bits : bits & ((1u << n % 32) - 1);
  };
  int steps = n;  // farther than any voxel of the column
  // The constant is already shifted by one, because a shift by 32 is undefined.
  std::uint32_t found = others(home) & (0xFFFFFFFEu << (i % 32));
  for (int j = home; found != 0 || j < last; found = others(++j)) {
    if (found == 0) continue;
    steps = 32 * j + zeros_below(found) - i;
    break;
  }
  found = others(home) & ((1u << (i % 32)) - 1);
  for (int j = home; found != 0 || (j > 0 && i - (32 * j - 1) < steps); found = others(--j)) {
    if (found == 0) continue;
    steps = smaller(steps, i - (32 * j + 63 - zeros_above(found)));
    break;
  }
  return steps < n ? static_cast<T>(steps) : Reach<T>::kFarSteps;
}

// Further axes, one voxel: the lowest parabola over voxel i of the line. Searches outwards until no
// parabola farther away can be lower.
template <typename T>
SEMISEG_HOST_DEVICE T search_line(Line<const T> line, int n, int i, T unit) {
  const bool inside = line[i] < 0;
  T best = inside ? -line[i] : line[i];
  const int reach = larger(i, n - 1 - i);
  for (int r = 1; r <= reach; ++r) {
    const T added = unit * r * r;
    if (best <= added) break;
    for (const int j : {i - r, i + r}) {
      if (j < 0 || j >= n) continue;
      const T height = larger(inside ? static_cast<T>(-line[j]) : line[j], T{0});
      if (height < best - added) best = height + added;
    }
  }
  return inside ? -best : best;
}

// Whether parabola q is never below both p and r, for p < q < r and the given heights.
template <typename W>
SEMISEG_HOST_DEVICE bool hidden(int p, W height_p, int q, W height_q, int r, W height_r, W unit) {
  return (height_q - height_p) * (r - q) + (height_q - height_r) * (q - p) >=
         unit * (q - p) * (r - q) * (r - p);
}

// Further axes. Writes the lowest parabola over every voxel of `line` to `out`, which must not
// overlap it. `hull` has room for n positions. Linear in n.
//
// Each run of one label is solved separately: the voxels that bound it are goals of height 0, so
// nothing behind them is nearer.
template <typename T>
SEMISEG_HOST_DEVICE void solve_line(Line<const T> line, Line<T> out, Line<int> hull, int n,
                                    T unit) {
  using Wide = typename Comparison<T>::Type;
  for (int begin = 0, end; begin < n; begin = end) {
    const bool inside = line[begin] < 0;
    end = begin + 1;
    while (end < n && (line[end] < 0) == inside) ++end;

    const auto height = [&](int j) -> T {
      return j < begin || j >= end ? T{0} : inside ? -line[j] : line[j];
    };
    const auto cost = [&](int j, int i) {
      return static_cast<Wide>(height(j)) + Wide(unit) * (i - j) * (i - j);
    };

    int top = -1;
    for (int j = begin > 0 ? begin - 1 : begin; j <= end && j < n; ++j) {
      const T added = height(j);
      if (added == Reach<T>::kFar) continue;
      while (top > 0 && hidden<Wide>(hull[top - 1], height(hull[top - 1]), hull[top],
                                     height(hull[top]), j, added, unit))
        --top;
      hull[++top] = j;
    }

    if (top < 0) {
      for (int i = begin; i < end; ++i) out[i] = line[i];
      continue;
    }
    for (int i = begin, k = 0; i < end; ++i) {
      while (k < top && cost(hull[k + 1], i) <= cost(hull[k], i)) ++k;
      const T square = static_cast<T>(cost(hull[k], i));
      out[i] = inside ? -square : square;
    }
  }
}

// The largest squared distance of each side of one item.
template <typename T>
struct Peak {
  T inside, outside;

  SEMISEG_HOST_DEVICE void see(T v) {
    inside = larger(inside, static_cast<T>(-v));
    outside = larger(outside, v);
  }
};

// Whether a foreground voxel shares a face with a background voxel. The volume's edge is no
// boundary.
SEMISEG_HOST_DEVICE bool on_inner_boundary(const std::uint8_t* mask, const Volumes& size, int x,
                                           int y, int z) {
  const std::ptrdiff_t step_x = size.plane(), step_y = size.z;
  const std::uint8_t* here = mask + x * step_x + y * step_y + z;
  if (*here == 0) return false;
  return (x > 0 && here[-step_x] == 0) || (x + 1 < size.x && here[step_x] == 0) ||  //
         (y > 0 && here[-step_y] == 0) || (y + 1 < size.y && here[step_y] == 0) ||  //
         (z > 0 && here[-1] == 0) || (z + 1 < size.z && here[1] == 0);
}

// The signed distance; infinite if the item has only one label.
template <typename T>
SEMISEG_HOST_DEVICE float distance(T v, float unit_length) {
  const T square = v < 0 ? static_cast<T>(-v) : v;
  const float length =
      square == Reach<T>::kFar ? HUGE_VALF : sqrtf(static_cast<float>(square)) * unit_length;
  return v < 0 ? -length : length;
}

// The signed distance divided by the largest one of its side; 0 on the inner boundary. An item with
// only one label is -1 (full) or 0 (empty) everywhere.
template <typename T>
SEMISEG_HOST_DEVICE float normalized_distance(T v, bool on_boundary, Peak<float> longest) {
  const T square = v < 0 ? static_cast<T>(-v) : v;
  const float share =
      sqrtf(static_cast<float>(square)) / (v < 0 ? -longest.inside : longest.outside);
  const float alone = v < 0 ? -1.f : 0.f;
  return on_boundary ? 0.f : square == Reach<T>::kFar ? alone : share;
}

}  // namespace semiseg
