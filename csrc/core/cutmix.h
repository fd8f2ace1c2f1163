#pragma once

// Splicing: the result is b inside a box and a elsewhere.

#include <cstdint>

#include "elements.h"

namespace semiseg {

// Two tensors and their result, each of `slabs` volumes: `channels` neighbouring volumes for each
// item of the batch.
struct SplicePair {
  const void *a, *b;
  void* out;
  int bytes;  // of an element
  std::int64_t slabs, channels;
};

struct SpliceSize {
  int x, y, z;

  SEMISEG_HOST_DEVICE int voxels() const { return x * y * z; }  // the caller checks that they fit
};

// Half-open and clipped to the volume: start == stop on an axis where nothing of the box is left.
struct SpliceBox {
  int start[3], stop[3];

  SEMISEG_HOST_DEVICE bool holds(int axis, int at) const {
    return start[axis] <= at && at < stop[axis];
  }
  SEMISEG_HOST_DEVICE bool holds(int x, int y, int z) const {
    return holds(0, x) && holds(1, y) && holds(2, z);
  }
};

// The boxes of a batch, one after the other, or the same box for all. Each has `axes` first corners
// and `axes` last corners.
struct SpliceBoxes {
  const std::int64_t* corners;
  int axes;
  bool one_for_all;

  SEMISEG_HOST_DEVICE SpliceBox box(std::int64_t item, const SpliceSize& size) const {
    const std::int64_t* start = corners + (one_for_all ? 0 : 2 * axes * item);
    SpliceBox box{{0, 0, 0}, {size.x, size.y, size.z}};
    // Not a loop over k: with constant indices a GPU keeps the box in registers.
    for (int axis = 0; axis < 3; ++axis) {
      const int k = axis < 2 ? axis : axes - 1, extent = box.stop[axis];
      if (axis < 2 && axis >= axes - 1) continue;
      const auto clamped = [extent](std::int64_t at) {
        return at < 0 ? 0 : at < extent ? static_cast<int>(at) : extent;
      };
      box.start[axis] = clamped(start[k]);
      box.stop[axis] = clamped(start[axes + k]);
      if (box.stop[axis] < box.start[axis]) box.stop[axis] = box.start[axis];
    }
    return box;
  }
};

}  // namespace semiseg
