// Finds the lowest parabola by search, for small squared distances, in 16-bit lanes along z: as
// many as one instruction holds. There is no include guard: signed_distance.cpp includes this file
// once for each instruction set, each time in its own namespace, which defines kLanes.
//
// A voxel of sign s starts from its own squared distance b and looks at both neighbours at radius
// 1, 2, ..., r. No source lies nearer than r, so the voxel is done as soon as b <= r^2. Two
// identities make a step take seven instructions for voxels of either sign side by side:
//   - b - r^2 is stored, so that a neighbour's cost is compared without adding r^2, and nothing
//     overflows;
//   - with flip = 0 outside and -1 inside, v ^ flip is s * v, less one inside. So every value
//     inside is stored less one, and zero becomes `flip`.

typedef std::int16_t Lanes __attribute__((vector_size(2 * kLanes)));

constexpr int kRadii = 8;  // radii between two checks whether any lane still searches

inline Lanes load(const std::int16_t* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(std::int16_t* to, Lanes lanes, int count = kLanes) {
  std::memcpy(to, &lanes, count * sizeof(std::int16_t));
}

inline Lanes all(int value) { return Lanes{} + static_cast<std::int16_t>(value); }

inline Lanes lower(Lanes a, Lanes b) { return b < a ? b : a; }

inline Lanes upper(Lanes a, Lanes b) { return a < b ? b : a; }

inline bool any(Lanes lanes) {
  typedef std::int64_t Words __attribute__((vector_size(2 * kLanes)));
  const Words words = reinterpret_cast<Words>(lanes);
  std::int64_t joined = 0;
  for (int i = 0; i < kLanes / 4; ++i) joined |= words[i];
  return joined != 0;
}

inline Lanes is_far(Lanes v) {
  constexpr std::int16_t far = Reach<std::int16_t>::kFar;
  return (v >= all(far)) | (v <= all(-far));
}

// Signed squares of the lanes at `line + i * stride`, whose sources lie `stride` apart. A source
// before `first` or after `last` is replaced by the one at `first` or `last`. That one is nearer
// than its cost here, so the result stays the same. `closed` lanes keep their values.
inline Lanes search(const std::int16_t* line, std::ptrdiff_t stride, int i, int first, int last,
                    int reach, Lanes closed) {
  const Lanes start = load(line + i * stride), flip = start < Lanes{};
  Lanes best = closed ? flip : start ^ flip;
  int r = 0;
  for (; r < reach && any(best > flip); r += kRadii) {
    for (int t = r + 1; t <= r + kRadii; ++t) {
      const Lanes back = load(line + std::max(i - t, first) * stride);
      const Lanes ahead = load(line + std::min(i + t, last) * stride);
      best = lower(best - all(2 * t - 1), upper(lower(back ^ flip, ahead ^ flip), flip));
    }
  }
  return closed ? start : (best + all(r * r)) ^ flip;
}

// Solves all lines along y, then all lines along z, of one x-plane in place. `rows` has room for ny
// rows of `padded` values, which is nz rounded up to whole lanes. `row` has room for one such row
// with `margin` values on both sides.
inline void search_plane(std::int16_t* plane, int ny, int nz, int padded, int margin,
                         std::int16_t* rows, std::int16_t* row) {
  for (int y = 0; ny > 1 && y < ny; ++y) {
    std::int16_t* end =
        std::copy_n(plane + std::int64_t{y} * nz, nz, rows + std::int64_t{y} * padded);
    std::fill_n(end, padded - nz, end[-1]);
  }
  for (int z = 0; ny > 1 && z < nz; z += kLanes) {
    // A column with one label and only far values is closed: nothing along y comes nearer.
    const Lanes inside = load(rows + z) < Lanes{};
    Lanes closed = all(-1);
    for (int y = 0; y < ny; ++y) {
      const Lanes v = load(rows + std::int64_t{y} * padded + z);
      closed &= is_far(v) & ((v < Lanes{}) == inside);
    }
    for (int y = 0; y < ny; ++y)
      store(plane + std::int64_t{y} * nz + z,
            search(rows + z, padded, y, 0, ny - 1, std::max(y, ny - 1 - y), closed),
            std::min(kLanes, nz - z));
  }
  for (int y = 0; nz > 1 && y < ny; ++y) {
    std::int16_t* line = plane + std::int64_t{y} * nz;
    std::fill_n(row, margin, line[0]);
    std::copy_n(line, nz, row + margin);
    std::fill_n(row + margin + nz, padded - nz + margin, line[nz - 1]);
    for (int z = 0; z < nz; z += kLanes)
      store(line + z,
            search(row + margin, 1, z, -margin, padded + margin,
                   std::max(z + kLanes - 1, nz - 1 - z), Lanes{}),
            std::min(kLanes, nz - z));
  }
}
