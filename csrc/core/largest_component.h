#pragma once

// Connected components by union-find, by several threads at once.
//
// Elements (voxels, or runs of voxels) are numbered in scan order. One int32 describes an element.
// A root holds ~size, which is negative. Any other element holds the number of an earlier element,
// one step nearer to its root. A root only ever joins an earlier root. So a component's root is its
// first element in scan order, whatever the order of the threads.
//
// An element that one thread may write while another reads it goes through an Access: Shared is
// atomic on both devices; Alone is for elements that no other thread touches. No order between
// different elements is needed: an outdated value of an element still names an element of the same
// component, and a root is joined only if it is still unchanged.

#include <cstdint>

#include "host_device.h"

namespace semiseg::components {

struct Alone {
  static std::int32_t load(const std::int32_t* from) { return *from; }
  static void store(std::int32_t* to, std::int32_t value) { *to = value; }
  // Writes `desired` if `expected` is stored; returns what was stored.
  static std::int32_t exchange(std::int32_t* at, std::int32_t, std::int32_t desired) {
    const std::int32_t old = *at;
    *at = desired;
    return old;
  }
};

struct Shared {
  SEMISEG_HOST_DEVICE static std::int32_t load(const std::int32_t* from) {
#ifdef __CUDA_ARCH__
    return *static_cast<const volatile std::int32_t*>(from);
#else
    return __atomic_load_n(from, __ATOMIC_RELAXED);
#endif
  }

  SEMISEG_HOST_DEVICE static void store(std::int32_t* to, std::int32_t value) {
#ifdef __CUDA_ARCH__
    *static_cast<volatile std::int32_t*>(to) = value;
#else
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
#endif
  }

  SEMISEG_HOST_DEVICE static std::int32_t exchange(std::int32_t* at, std::int32_t expected,
                                                   std::int32_t desired) {
#ifdef __CUDA_ARCH__
    return atomicCAS(at, expected, desired);
#else
    __atomic_compare_exchange_n(at, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
#endif
  }
};

// The root of an element. Moves every other element on the way one step nearer to the root.
template <typename Access>
SEMISEG_HOST_DEVICE std::int32_t find_root(std::int32_t* parents, std::int32_t element) {
  for (std::int32_t parent; (parent = Access::load(parents + element)) >= 0;) {
    const std::int32_t next = Access::load(parents + parent);
    if (next < 0) return parent;
    Access::store(parents + element, next);
    element = next;
  }
  return element;
}

// Joins two components: the earlier root takes the other's size. Returns an element of the joined
// component. It is the root unless another thread joins the component meanwhile.
template <typename Access>
SEMISEG_HOST_DEVICE std::int32_t unite(std::int32_t* parents, std::int32_t a, std::int32_t b) {
  while (true) {
    a = find_root<Access>(parents, a);
    b = find_root<Access>(parents, b);
    if (a == b) return a;
    if (a < b) {
      const std::int32_t swapped = a;
      a = b;
      b = swapped;
    }
    const std::int32_t held = Access::load(parents + a);
    if (held >= 0 || Access::exchange(parents + a, held, b) != held) continue;
    // Once a is no root, nothing more is added to it. Its size goes to the current root of b.
    for (std::int32_t root = b; held != ~0;) {
      root = find_root<Access>(parents, root);
      const std::int32_t had = Access::load(parents + root);
      if (had < 0 && Access::exchange(parents + root, had, had + held + 1) == had) return root;
    }
    return b;
  }
}

// Ranks the components of a class: by size, then by the earlier root. A class without components
// keeps 0.
using Key = unsigned long long;

SEMISEG_HOST_DEVICE Key key_of(std::int32_t size, std::int32_t root) {
  return static_cast<Key>(size) << 32 | ~static_cast<std::uint32_t>(root);
}

// The root in a key; no element's number if the key is 0.
SEMISEG_HOST_DEVICE std::int32_t root_of(Key key) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(key));
}

// Raises `best` to `key`. Most components are too small, and return without writing.
SEMISEG_HOST_DEVICE void propose(Key* best, Key key) {
#ifdef __CUDA_ARCH__
  if (*static_cast<volatile Key*>(best) < key) atomicMax(best, key);
#else
  Key seen = __atomic_load_n(best, __ATOMIC_RELAXED);
  while (seen < key &&
         !__atomic_compare_exchange_n(best, &seen, key, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
#endif
}

// Labels are read as unsigned, so that negative labels lie beyond every class.
template <typename T>
SEMISEG_HOST_DEVICE bool is_foreground(T label, int classes) {
  return label != 0 && static_cast<std::uint64_t>(label) < static_cast<std::uint64_t>(classes);
}

// One item: x slowest, z contiguous, fewer than 2^31 voxels. Neighbours differ by at most one along
// at most `rank` axes: across faces (1), edges (2), corners (3).
struct Grid {
  int x, y, z, rank;

  SEMISEG_HOST_DEVICE std::int32_t plane() const { return y * z; }
  SEMISEG_HOST_DEVICE std::int32_t voxels() const { return x * y * z; }
};

// The rows that touch the row at (x, y) and are scanned before it: (x, y - 1), (x - 1, y - 1),
// (x - 1, y) and (x - 1, y + 1).
constexpr int kEarlierRows = 4;

struct EarlierRow {
  int planes;         // planes back
  int y;              // relative to the row's y
  int reach;          // largest distance along z of neighbours; negative: there are no neighbours
  std::int32_t back;  // voxels back

  SEMISEG_HOST_DEVICE EarlierRow(int i, const Grid& grid) : planes(i > 0), y(i == 0 ? -1 : i - 2) {
    reach = grid.rank - planes - (y != 0);
    if (reach > 1) reach = 1;
    back = planes * grid.plane() - y * grid.z;
  }

  SEMISEG_HOST_DEVICE bool exists(const Grid& grid, int of_x, int of_y) const {
    return reach >= 0 && of_x >= planes && of_y + y >= 0 && of_y + y < grid.y;
  }
};

// Calls visit(neighbour) for neighbours of a foreground voxel that lie in earlier rows and have its
// label. These, together with the equal neighbours within each row, join all voxels that touch. Two
// runs of a label that lie side by side are visited only where they first touch.
template <typename T, typename Visit>
SEMISEG_HOST_DEVICE void for_each_contact(const T* labels, const Grid& grid, int x, int y, int z,
                                          const Visit& visit) {
  const std::int32_t voxel = (x * grid.y + y) * grid.z + z;
  const T label = labels[voxel];
  const bool begins = z == 0 || labels[voxel - 1] != label;
  const bool ends = z + 1 == grid.z || labels[voxel + 1] != label;
  for (int i = 0; i < kEarlierRows; ++i) {
    const EarlierRow row(i, grid);
    if (!row.exists(grid, x, y)) continue;
    const std::int32_t beside = voxel - row.back;
    if (labels[beside] == label) {
      if (begins || labels[beside - 1] != label) visit(beside);
    } else if (row.reach > 0) {
      if (begins && z > 0 && labels[beside - 1] == label) visit(beside - 1);
      if (ends && z + 1 < grid.z && labels[beside + 1] == label) visit(beside + 1);
    }
  }
}

}  // namespace semiseg::components
