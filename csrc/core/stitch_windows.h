#pragma once

// Stitches sliding windows: a voxel's probabilities come from the windows of a grid that cover it.
//
// This is a gather: every voxel visits its windows in the grid's order. So no two threads write the
// same voxel, and the sum has the same bits for any number of threads and any number of windows a
// call.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace semiseg {

enum class Activation { kNone, kSoftmax, kSigmoid };

// Windows of one size over a volume, x slowest; an image has y == 1. The grid is passed to kernels
// by value, and all arguments of a kernel hold 4 KiB: hence the limit on starts.
struct WindowGrid {
  static constexpr int kMaxStarts = 768;

  int size[3], patch[3], counts[3];
  int starts[kMaxStarts + 1];  // first voxels along x, then y (an image: 0), then z, each ascending

  SEMISEG_HOST_DEVICE int start_x(int i) const { return starts[i]; }
  SEMISEG_HOST_DEVICE int start_y(int j) const { return starts[counts[0] + j]; }
  SEMISEG_HOST_DEVICE int start_z(int k) const { return starts[counts[0] + counts[1] + k]; }

  // The number of windows along an axis that cover `at`.
  SEMISEG_HOST_DEVICE int covering(int axis, int at) const {
    const int* along = starts + (axis > 0 ? counts[0] : 0) + (axis > 1 ? counts[1] : 0);
    int covered = 0;
    for (int i = 0; i < counts[axis] && along[i] <= at; ++i) covered += at - along[i] < patch[axis];
    return covered;
  }

  SEMISEG_HOST_DEVICE std::int64_t windows() const {
    return std::int64_t{counts[0]} * counts[1] * counts[2];
  }
  SEMISEG_HOST_DEVICE std::int64_t voxels() const {
    return std::int64_t{size[0]} * size[1] * size[2];
  }
  SEMISEG_HOST_DEVICE std::int64_t voxel(int x, int y, int z) const {
    return (std::int64_t{x} * size[1] + y) * size[2] + z;
  }
};

// Windows `first` to `last` - 1 of a grid, and the box of voxels that they touch.
struct WindowRun {
  std::int64_t first, last;
  int first_x, last_x;  // the first and the last start along x in this run
  int origin[3], extent[3];

  // `count` is at least 1.
  WindowRun(const WindowGrid& grid, std::int64_t first_window, std::int64_t count)
      : first(first_window), last(first_window + count) {
    const std::int64_t from[3] = {first / grid.counts[2] / grid.counts[1],
                                  first / grid.counts[2] % grid.counts[1], first % grid.counts[2]};
    const std::int64_t to[3] = {(last - 1) / grid.counts[2] / grid.counts[1],
                                (last - 1) / grid.counts[2] % grid.counts[1],
                                (last - 1) % grid.counts[2]};
    first_x = static_cast<int>(from[0]);
    last_x = static_cast<int>(to[0]);
    // Whether the run has one start along all slower axes; otherwise it spans this axis.
    bool one = true;
    const int* starts = grid.starts;
    for (int axis = 0; axis < 3; starts += grid.counts[axis++]) {
      const bool whole = axis > 0 && !one;
      const int begin = starts[whole ? 0 : from[axis]];
      const int end = starts[whole ? grid.counts[axis] - 1 : to[axis]];
      origin[axis] = begin;
      extent[axis] = end + grid.patch[axis] - begin;
      one = one && from[axis] == to[axis];
    }
  }

  SEMISEG_HOST_DEVICE std::int64_t voxels() const {
    return std::int64_t{extent[0]} * extent[1] * extent[2];
  }
};

// Calls visit(window, px, py, z) for the windows of the run that cover column (x, y), in the grid's
// order. `window` counts from the run's first window, (px, py) is the column's place in it, and z
// the first voxel that it covers along z.
template <typename Visit>
SEMISEG_HOST_DEVICE void visit_column(const WindowGrid& grid, const WindowRun& run, int x, int y,
                                      const Visit& visit) {
  for (int i = run.first_x; i <= run.last_x; ++i) {
    const int px = x - grid.start_x(i);
    if (px < 0) break;
    if (px >= grid.patch[0]) continue;
    for (int j = 0; j < grid.counts[1]; ++j) {
      const int py = y - grid.start_y(j);
      if (py < 0) break;
      if (py >= grid.patch[1]) continue;
      const std::int64_t row = (std::int64_t{i} * grid.counts[1] + j) * grid.counts[2];
      const int begin = run.first > row ? static_cast<int>(run.first - row) : 0;
      const int end =
          run.last - row < grid.counts[2] ? static_cast<int>(run.last - row) : grid.counts[2];
      for (int k = begin; k < end; ++k) visit(row + k - run.first, px, py, grid.start_z(k));
    }
  }
}

// Strides of `(N, C, X, Y, Z)` logits, in elements.
struct LogitStrides {
  std::int64_t window, channel, x, y, z;
};

// 16-bit floats, converted by their bits, so that neither compiler needs the types.
struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <typename To, typename From>
SEMISEG_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SEMISEG_HOST_DEVICE float to_float(float value) { return value; }
SEMISEG_HOST_DEVICE float to_float(double value) { return static_cast<float>(value); }
SEMISEG_HOST_DEVICE float to_float(BFloat16 value) {
  return bits_as<float>(std::uint32_t{value.bits} << 16);
}
SEMISEG_HOST_DEVICE float to_float(Float16 value) {
  const std::uint32_t magnitude = value.bits & 0x7fffu, sign = (value.bits & 0x8000u) << 16;
  // The product moves the exponent's bias, of subnormals too.
  const float finite = bits_as<float>(magnitude << 13) * 0x1p112f;
  return bits_as<float>(sign | (magnitude < 0x7c00u ? bits_as<std::uint32_t>(finite)
                                                    : magnitude << 13 | 0x7f800000u));
}

// e^x for x <= 0 with a relative error of 1e-7; 0 for x < -87; NaN stays NaN. The code has no
// branches, so it vectorises. With x = n ln 2 + r and |r| <= ln 2 / 2, e^r is the polynomial
// 1 + r + r^2 q(r) of least relative error.
SEMISEG_HOST_DEVICE float exp_of_negative(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  // The sum rounds to an integer n, in the lowest bits.
  const float shifted = x * 0x1.715476p0f + 0x1.8p23f;
  const float n = shifted - 0x1.8p23f;
  // ln 2 in two parts; n times the first part is exact.
  const float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
  float q = 0x1.6a23dp-10f;
  q = q * r + 0x1.123a2p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const float scale = bits_as<float>((bits_as<std::uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.f ? 0.f : (q * (r * r) + r + 1.f) * scale;
#endif
}

SEMISEG_HOST_DEVICE float sigmoid(float x) {
  const float e = exp_of_negative(x < 0 ? x : -x), larger_half = 1 / (1 + e);
  return x < 0 ? e * larger_half : larger_half;
}

// Two classes need only one exponential. `high - high` is 0, or NaN for an infinite logit, as in
// torch.softmax: an overflow must not look like certainty.
SEMISEG_HOST_DEVICE void softmax(float (&value)[2]) {
  const bool second = value[1] > value[0];
  const float high = second ? value[1] : value[0], low = second ? value[0] : value[1];
  const float e = exp_of_negative(low - high + (high - high));
  const float larger_share = 1 / (1 + e), smaller_share = e * larger_share;
  value[0] = second ? smaller_share : larger_share;
  value[1] = second ? larger_share : smaller_share;
}

template <int C>
SEMISEG_HOST_DEVICE void softmax(float (&value)[C]) {
  float high = value[0], sum = 0;
  for (int c = 1; c < C; ++c) high = value[c] > high ? value[c] : high;
  for (int c = 0; c < C; ++c) sum += value[c] = exp_of_negative(value[c] - high);
  for (int c = 0; c < C; ++c) value[c] /= sum;
}

}  // namespace semiseg
