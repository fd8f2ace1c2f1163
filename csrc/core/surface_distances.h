#pragma once

// Distances from the surface of one mask to the surface of another. Masks are bits: rows along z in
// words of 64 voxels, so that the nearest voxel of a row is found by counting zeros.
//
// A search visits the rows around a voxel, nearest first, and skips rows that are too far away to
// hold anything nearer. After the near rows it visits blocks of tiles of rows. It enters only those
// whose rows, combined into one, hold something near enough.
//
// T counts squared distances: int64_t for equal spacing (exact) and double for unequal spacing.

#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace semiseg::surfaces {

using Word = std::uint64_t;

constexpr int kWordBits = 64;
constexpr int kSide = 4;      // rows of a tile along x and along y, and tiles of a block
constexpr int kNearRows = 3;  // rows to each side that are searched one by one before the tiles

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
  bool image;  // an image has y == 1, and no neighbours along y

  SEMISEG_HOST_DEVICE std::int64_t row(int i, int j) const {
    return (std::int64_t{i} * y + j) * words;
  }
  SEMISEG_HOST_DEVICE std::int64_t size() const { return std::int64_t{x} * y * words; }
  // One row for each tile of rows.
  SEMISEG_HOST_DEVICE Grid tiled() const {
    return {x / kSide + (x % kSide != 0), y / kSide + (y % kSide != 0), words, image};
  }
};

// The bits of word k of row (i, j) of a mask that share a face with the background: the mask minus
// its erosion by the 6-connected (image: 4-connected) cross. Everything beyond the grid is
// background.
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

// Word k of tile (i, j): the union of its rows.
SEMISEG_HOST_DEVICE Word tile_word(const Word* rows, const Grid& grid, int i, int j, int k) {
  Word word = 0;
  for (int a = i * kSide; a < grid.x && a < (i + 1) * kSide; ++a)
    for (int b = j * kSide; b < grid.y && b < (j + 1) * kSide; ++b)
      word |= rows[grid.row(a, b) + k];
  return word;
}

// The bits of a surface by row, by tile, and by block (a tile of tiles).
struct Surface {
  const Word* rows;
  const Word* tiles;
  const Word* blocks;
};

// The square of a step along each axis, in units of T, and the length of that unit.
template <typename T>
struct SquaredSteps {
  T x, y, z;
  double length;
};

// The squared distance if there is nothing to measure to.
template <typename T>
constexpr T kNowhere = std::numeric_limits<T>::max();

template <typename T>
SEMISEG_HOST_DEVICE T squared(T unit, std::int64_t steps) {
  return unit * static_cast<T>(steps) * static_cast<T>(steps);
}

// Squared distance from position z to the nearest set bit of a row whose own squared distance is
// `base`. Returns `best` if that is less.
template <typename T>
SEMISEG_HOST_DEVICE T search_row(const Word* row, int words, int z, T base, T unit, T best) {
  const int at = z / kWordBits, bit = z % kWordBits;
  const Word ahead = row[at] >> bit, back = row[at] << (kWordBits - 1 - bit);
  if (ahead != 0) {
    best = smaller(best, base + squared(unit, zeros_below(ahead)));
  } else {
    for (int k = at + 1, steps = kWordBits - bit; k < words && base + squared(unit, steps) < best;
         ++k, steps += kWordBits) {
      if (row[k] == 0) continue;
      best = smaller(best, base + squared(unit, steps + zeros_below(row[k])));
      break;
    }
  }
  if (back != 0) {
    best = smaller(best, base + squared(unit, zeros_above(back)));
  } else {
    for (int k = at - 1, steps = bit + 1; k >= 0 && base + squared(unit, steps) < best;
         --k, steps += kWordBits) {
      if (row[k] == 0) continue;
      best = smaller(best, base + squared(unit, steps + zeros_above(row[k])));
      break;
    }
  }
  return best;
}

// Calls visit(i, j) for all rows of the grid on the square ring of radius r around (x, y).
template <typename Visit>
SEMISEG_HOST_DEVICE void visit_ring(const Grid& grid, int x, int y, int r, const Visit& visit) {
  const int left = larger(x - r, 0), right = smaller(x + r, grid.x - 1);
  const int low = larger(y - r, 0), high = smaller(y + r, grid.y - 1);
  if (x - r >= 0)
    for (int j = low; j <= high; ++j) visit(x - r, j);
  if (r > 0 && x + r < grid.x)
    for (int j = low; j <= high; ++j) visit(x + r, j);
  const int first = larger(left, x - r + 1), last = smaller(right, x + r - 1);
  if (y - r >= 0)
    for (int i = first; i <= last; ++i) visit(i, y - r);
  if (r > 0 && y + r < grid.y)
    for (int i = first; i <= last; ++i) visit(i, y + r);
}

// Steps from row v to the nearest row of a tile or block that is `side` rows wide.
SEMISEG_HOST_DEVICE int steps_into(int tile, int side, int v) {
  const int first = tile * side;
  return v < first ? first - v : larger(v - first - (side - 1), 0);
}

// The state of a search: where it starts, and the lowest squared distance so far.
template <typename T>
struct Search {
  const Surface& surface;
  const Grid& grid;
  const SquaredSteps<T>& step;
  int x, y, z;
  T best = kNowhere<T>;

  SEMISEG_HOST_DEVICE T squared_steps(int along_x, int along_y) const {
    return squared(step.x, along_x) + squared(step.y, along_y);
  }

  // Whether a tile or a block may hold anything nearer.
  SEMISEG_HOST_DEVICE bool worth(const Word* tiles, const Grid& level, int side, int i,
                                 int j) const {
    const T base = squared_steps(steps_into(i, side, x), steps_into(j, side, y));
    return base < best &&
           search_row(tiles + level.row(i, j), level.words, z, base, step.z, best) < best;
  }

  SEMISEG_HOST_DEVICE void visit_row(int i, int j) {
    const T base = squared_steps(i - x, j - y);
    if (base < best)
      best = search_row(surface.rows + grid.row(i, j), grid.words, z, base, step.z, best);
  }

  SEMISEG_HOST_DEVICE void visit_tile(const Grid& tiles, int i, int j) {
    if (!worth(surface.tiles, tiles, kSide, i, j)) return;
    for (int a = i * kSide; a < grid.x && a < (i + 1) * kSide; ++a)
      for (int b = j * kSide; b < grid.y && b < (j + 1) * kSide; ++b) visit_row(a, b);
  }

  SEMISEG_HOST_DEVICE void visit_block(const Grid& blocks, const Grid& tiles, int i, int j) {
    if (!worth(surface.blocks, blocks, kSide * kSide, i, j)) return;
    for (int a = i * kSide; a < tiles.x && a < (i + 1) * kSide; ++a)
      for (int b = j * kSide; b < tiles.y && b < (j + 1) * kSide; ++b) visit_tile(tiles, a, b);
  }

  SEMISEG_HOST_DEVICE void near(T least) {
    for (int r = 0; r <= kNearRows && squared(least, r) < best; ++r)
      visit_ring(grid, x, y, r, [this](int i, int j) { visit_row(i, j); });
  }

  SEMISEG_HOST_DEVICE void far(T least) {
    constexpr int kBlockSide = kSide * kSide;
    const Grid tiles = grid.tiled(), blocks = tiles.tiled();
    const int block_x = x / kBlockSide, block_y = y / kBlockSide;
    for (int r = 0; r < blocks.x || r < blocks.y; ++r) {
      if (r > 0 && squared(least, std::int64_t{r - 1} * kBlockSide + 1) >= best) break;
      visit_ring(blocks, block_x, block_y, r,
                 [&](int i, int j) { visit_block(blocks, tiles, i, j); });
    }
  }
};

// Squared distance from voxel (x, y, z) to the nearest voxel of the surface; kNowhere if it has
// none.
template <typename T>
SEMISEG_HOST_DEVICE T nearest(const Surface& surface, const Grid& grid, const SquaredSteps<T>& step,
                              int x, int y, int z) {
  Search<T> search{surface, grid, step, x, y, z};
  const T least = smaller(step.x, step.y);
  search.near(least);
  if (squared(least, kNearRows + 1) < search.best) search.far(least);
  return search.best;
}

// The distance; infinite if nothing was found.
template <typename T>
SEMISEG_HOST_DEVICE double surface_distance(T best, const SquaredSteps<T>& step) {
  return best == kNowhere<T> ? HUGE_VAL : sqrt(static_cast<double>(best)) * step.length;
}

}  // namespace semiseg::surfaces
