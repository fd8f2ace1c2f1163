#pragma once

// Distances from the surface of one mask to the surface of another, over bitmasks: one bit a voxel, a row along z in
// words of 64, so that the nearest voxel of a row is a count of zeros.
//
// A search visits the rows around a voxel, near ones first, and leaves out those that lie too far away to hold anything
// nearer than what it has. Far from home it visits tiles of rows, and enters only those whose rows, laid over each
// other, hold something near enough.
//
// T counts squared distances: int64_t for equal spacing (exact) and double for unequal spacing.

#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace semiseg::surfaces {

using Word = std::uint64_t;

constexpr int kWordBits = 64;
constexpr int kTileRows = 8;  // rows along x, and along y, of a tile
constexpr int kNearRows = 4;  // so many rows to each side are searched one by one before the tiles

SEMISEG_HOST_DEVICE int zeros_below(Word word) {  // of a word that is not 0, as below
#ifdef __CUDA_ARCH__
  return __ffsll(static_cast<long long>(word)) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

SEMISEG_HOST_DEVICE int zeros_above(Word word) {
#ifdef __CUDA_ARCH__
  return __clzll(static_cast<long long>(word));
#else
  return __builtin_clzll(word);
#endif
}

SEMISEG_HOST_DEVICE int count_bits(Word word) {
#ifdef __CUDA_ARCH__
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// Rows of bits, x slowest. Bits past the end of a row are 0.
struct Grid {
  int x, y, words;
  bool image;  // y == 1 is no axis: voxels have no neighbours along it

  SEMISEG_HOST_DEVICE std::int64_t row(int i, int j) const { return (std::int64_t{i} * y + j) * words; }
  SEMISEG_HOST_DEVICE std::int64_t size() const { return std::int64_t{x} * y * words; }
  // One row for each tile of rows.
  SEMISEG_HOST_DEVICE Grid tiles() const {
    return {x / kTileRows + (x % kTileRows != 0), y / kTileRows + (y % kTileRows != 0), words, image};
  }
};

// Bits of one word of a mask, at word k of row (i, j), that have a face on the background: the mask without its erosion
// by the 6-connected (image: 4-connected) cross. Beyond the grid all is background.
SEMISEG_HOST_DEVICE Word surface_word(const Word* mask, const Grid& grid, int i, int j, int k) {
  const std::int64_t step_x = grid.row(1, 0), step_y = grid.words;
  const Word *here = mask + grid.row(i, j) + k, word = *here;
  if (word == 0) return 0;
  Word inner = (word << 1 | (k > 0 ? here[-1] >> (kWordBits - 1) : 0)) &
               (word >> 1 | (k + 1 < grid.words ? here[1] << (kWordBits - 1) : 0));
  inner &= i > 0 && i + 1 < grid.x ? here[-step_x] & here[step_x] : 0;
  if (!grid.image) inner &= j > 0 && j + 1 < grid.y ? here[-step_y] & here[step_y] : 0;
  return word & ~inner;
}

// A rectangle of rows or tiles.
struct Range {
  int x_begin, x_end, y_begin, y_end;
};

// The voxels of a surface; no tile outside of `range` has any, and the range of none is empty.
struct Surface {
  const Word* rows;
  const Word* tiles;
  Range range;
};

// What a step along each axis adds to the squared distance, and the length of T's unit.
template <typename T>
struct SquaredSteps {
  T x, y, z;
  double length;
};

// The squared distance to nothing.
template <typename T>
constexpr T kNowhere = std::numeric_limits<T>::max();

template <typename T>
SEMISEG_HOST_DEVICE T squared(T unit, std::int64_t steps) {
  return unit * static_cast<T>(steps) * static_cast<T>(steps);
}

template <typename T>
SEMISEG_HOST_DEVICE T lesser(T a, T b) {
  return b < a ? b : a;
}

// Squared distance to the nearest set bit of a row from its position z, where the row itself lies `base` away; `best`
// if that is less.
template <typename T>
SEMISEG_HOST_DEVICE T search_row(const Word* row, int words, int z, T base, T unit, T best) {
  const int at = z / kWordBits, bit = z % kWordBits;
  const Word ahead = row[at] >> bit, back = row[at] << (kWordBits - 1 - bit);
  if (ahead != 0) {
    best = lesser(best, base + squared(unit, zeros_below(ahead)));
  } else {
    for (int k = at + 1, steps = kWordBits - bit; k < words && base + squared(unit, steps) < best;
         ++k, steps += kWordBits) {
      if (row[k] == 0) continue;
      best = lesser(best, base + squared(unit, steps + zeros_below(row[k])));
      break;
    }
  }
  if (back != 0) {
    best = lesser(best, base + squared(unit, zeros_above(back)));
  } else {
    for (int k = at - 1, steps = bit + 1; k >= 0 && base + squared(unit, steps) < best; --k, steps += kWordBits) {
      if (row[k] == 0) continue;
      best = lesser(best, base + squared(unit, steps + zeros_above(row[k])));
      break;
    }
  }
  return best;
}

// Calls visit(i, j) for all of the range that lie on the square ring of radius r around (x, y).
template <typename Visit>
SEMISEG_HOST_DEVICE void visit_ring(int x, int y, int r, const Range& range, const Visit& visit) {
  const int low = y - r < range.y_begin ? range.y_begin : y - r, high = lesser(y + r + 1, range.y_end);
  const int near = x - r, far = x + r;
  if (near >= range.x_begin && near < range.x_end)
    for (int j = low; j < high; ++j) visit(near, j);
  if (r == 0) return;
  if (far >= range.x_begin && far < range.x_end)
    for (int j = low; j < high; ++j) visit(far, j);
  const int first = near + 1 < range.x_begin ? range.x_begin : near + 1, last = lesser(far, range.x_end);
  if (y - r >= range.y_begin && y - r < range.y_end)
    for (int i = first; i < last; ++i) visit(i, y - r);
  if (y + r >= range.y_begin && y + r < range.y_end)
    for (int i = first; i < last; ++i) visit(i, y + r);
}

SEMISEG_HOST_DEVICE int steps_into(int tile, int v) {  // from row v to the nearest row of a tile
  const int first = tile * kTileRows, last = first + kTileRows - 1;
  return v < first ? first - v : v > last ? v - last : 0;
}

// Squared distance from voxel (x, y, z) to the nearest voxel of the surface; kNowhere if it has none.
template <typename T>
SEMISEG_HOST_DEVICE T nearest(const Surface& surface, const Grid& grid, const SquaredSteps<T>& step, int x, int y,
                              int z) {
  T best = kNowhere<T>;
  const T least = lesser(step.x, step.y);
  const auto visit_row = [&](int i, int j) {
    const T base = squared(step.x, i - x) + squared(step.y, j - y);
    if (base < best) best = search_row(surface.rows + grid.row(i, j), grid.words, z, base, step.z, best);
  };
  for (int r = 0; r <= kNearRows; ++r) {
    if (squared(least, r) >= best) return best;
    visit_ring(x, y, r, {0, grid.x, 0, grid.y}, visit_row);
  }

  const Grid tiles = grid.tiles();
  const Range& range = surface.range;
  const auto visit_tile = [&](int i, int j) {
    const T base = squared(step.x, steps_into(i, x)) + squared(step.y, steps_into(j, y));
    if (base >= best) return;
    if (search_row(surface.tiles + tiles.row(i, j), grid.words, z, base, step.z, best) >= best) return;
    const int x_end = lesser((i + 1) * kTileRows, grid.x), y_end = lesser((j + 1) * kTileRows, grid.y);
    for (int a = i * kTileRows; a < x_end; ++a)
      for (int b = j * kTileRows; b < y_end; ++b) visit_row(a, b);
  };
  const int tile_x = x / kTileRows, tile_y = y / kTileRows;
  const auto beyond = [](int v, int begin, int end) { return v < begin ? begin - v : v >= end ? v - end + 1 : 0; };
  const auto reach = [](int v, int begin, int end) { return v - begin > end - 1 - v ? v - begin : end - 1 - v; };
  const int first_x = beyond(tile_x, range.x_begin, range.x_end), first_y = beyond(tile_y, range.y_begin, range.y_end);
  const int last_x = reach(tile_x, range.x_begin, range.x_end), last_y = reach(tile_y, range.y_begin, range.y_end);
  for (int r = first_x < first_y ? first_y : first_x; r <= (last_x < last_y ? last_y : last_x); ++r) {
    if (r > 0 && squared(least, std::int64_t{r - 1} * kTileRows + 1) >= best) break;
    visit_ring(tile_x, tile_y, r, range, visit_tile);
  }
  return best;
}

// The distance itself; infinite where nothing was found.
template <typename T>
SEMISEG_HOST_DEVICE double surface_distance(T best, const SquaredSteps<T>& step) {
  return best == kNowhere<T> ? HUGE_VAL : sqrt(static_cast<double>(best)) * step.length;
}

}  // namespace semiseg::surfaces
