#pragma once

// How a turned and flipped crop reads its volume. Quarter turns and flips only exchange and reverse
// axes. So each axis of the result runs along one axis of the volume, forwards or backwards, and
// the voxels that come from the volume form a box in the result.

#include <cstdint>

#include "elements.h"

namespace semiseg {

// Voxel (i, j, k) of the result is voxel first + i * step[0] + j * step[1] + k * step[2] of the
// volume if begin <= (i, j, k) < end on every axis, and 0 elsewhere. The result of an image has an
// axis j of extent 1 between its own two.
struct CropView {
  std::int64_t first, step[3];
  int begin[3], end[3];

  SEMISEG_HOST_DEVICE bool holds(int axis, int at) const {
    return begin[axis] <= at && at < end[axis];
  }
  SEMISEG_HOST_DEVICE std::int64_t row(int i, int j) const {
    return first + i * step[0] + j * step[1];
  }
};

// The view of a contiguous volume of `axes` axes (2 or 3) and the given extents. `start`: the
// crop's corner; `size`: extents of the result; `rot`: quarter turns 0 .. 3 from axis 0 to axis 1;
// `flip`: the axis reversed afterwards, or -1.
inline CropView crop_view(int axes, const std::int64_t* extents, const std::int64_t* start,
                          const std::int64_t* size, int rot, int flip) {
  CropView result{0, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}};
  for (int axis = 0; axis < axes; ++axis) {
    // The axis of the volume along which this one runs.
    const int from = rot % 2 == 1 && axis < 2 ? 1 - axis : axis;
    // torch.rot90(x, 1, (0, 1))[i, j] is x[j, -1 - i]; each further turn repeats that.
    const bool turned = axis < 2 && (rot == 2 || rot == (axis == 0 ? 1 : 3));
    const bool backwards = turned != (axis == flip);
    std::int64_t stride = 1;
    for (int inner = from + 1; inner < axes; ++inner) stride *= extents[inner];

    // Beyond these corners the crop lies outside the volume, so the corner is clamped to them.
    const std::int64_t n = size[axis], corner = larger(-n, smaller(start[from], extents[from]));
    const std::int64_t begin = larger<std::int64_t>(-corner, 0);
    const std::int64_t end = larger(smaller(extents[from] - corner, n), begin);
    const int out = volume_axis(axis, axes);
    result.step[out] = backwards ? -stride : stride;
    result.first += (backwards ? corner + n - 1 : corner) * stride;
    result.begin[out] = static_cast<int>(backwards ? n - end : begin);
    result.end[out] = static_cast<int>(backwards ? n - begin : end);
  }
  return result;
}

}  // namespace semiseg
