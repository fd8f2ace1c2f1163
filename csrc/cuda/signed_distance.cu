// signed_distance on CUDA: one thread for each voxel, in three passes. Along x a thread looks for
// the other label among the bits of its column. Along y, then z, it looks for the lowest parabola
// of its line, nearest first. Columns and lines are kept in shared memory. A last pass takes roots
// and scales.

#include "launch.h"
#include "signed_distance.h"

namespace semiseg {
namespace {

constexpr int kBlock = 256;
constexpr int kLanes = 32;  // largest number of neighbours along z in a block: the width of a warp

// Non-negative floats have the same order as their bits.
__device__ int ordered(std::int32_t square) { return square; }
__device__ int ordered(float square) { return __float_as_int(square); }
__device__ std::int32_t restored(int bits, std::int32_t) { return bits; }
__device__ float restored(int bits, float) { return __int_as_float(bits); }

// A block takes `columns` neighbouring columns along x of one item.
template <typename T>
__global__ void scan_x(const std::uint8_t* mask, T* out, Volumes size, int columns,
                       unsigned blocks_an_item, T unit) {
  SEMISEG_DYNAMIC_SHARED(std::uint32_t, words);
  const std::int64_t plane = size.plane(), item = blockIdx.x / blocks_an_item;
  const int lane = static_cast<int>(threadIdx.x) % columns;
  const int team = static_cast<int>(threadIdx.x) / columns;
  const std::int64_t column = std::int64_t{blockIdx.x % blocks_an_item} * columns + lane;
  const std::int64_t first = item * size.voxels() + column;
  const bool valid = column < plane;

  for (int j = team; 32 * j < size.x; j += kBlock / columns) {
    std::uint32_t word = 0;
    const int count = smaller(32, size.x - 32 * j);
    for (int bit = 0; valid && bit < count; ++bit)
      word |= std::uint32_t{mask[first + (32 * j + bit) * plane] != 0} << bit;
    words[j * columns + lane] = word;
  }
  __syncthreads();
  for (int x = team; valid && x < size.x; x += kBlock / columns) {
    const bool inside = words[x / 32 * columns + lane] >> (x % 32) & 1;
    out[first + x * plane] =
        signed_square(steps_among_bits<T>(words + lane, columns, size.x, x), inside, unit);
  }
}

// How a pass along y or z is cut into tiles, one for each block: `lines` neighbouring lines of n
// voxels. Lines along z follow each other in memory; lines along y lie side by side.
struct Tiles {
  int n, lines, lines_a_group;      // a group: the lines from which a tile is cut
  std::int64_t groups, group_size;  // in voxels
  bool side_by_side;
  bool in_shared;

  unsigned a_group() const { return static_cast<unsigned>(blocks_for(lines_a_group, lines)); }
};

// Writes the lowest parabolas along one axis from `in` to `out`. With `peaks`, collects each item's
// largest squares there. With `roots`, writes distances there instead of squares.
template <typename T>
__global__ void search(const T* in, T* out, float* roots, int* peaks, Tiles tiles,
                       unsigned tiles_a_group, std::int64_t groups_an_item, T unit,
                       float unit_length) {
  SEMISEG_DYNAMIC_SHARED(T, tile);
  __shared__ int highest[2];
  const std::int64_t group = blockIdx.x / tiles_a_group;
  const int begin = static_cast<int>(blockIdx.x % tiles_a_group) * tiles.lines;
  const int lines = smaller(tiles.lines, tiles.lines_a_group - begin);
  const std::int64_t line_step = tiles.side_by_side ? 1 : tiles.n;
  const std::int64_t step = tiles.side_by_side ? tiles.lines_a_group : 1;
  const std::int64_t first = group * tiles.group_size + begin * line_step;
  if (threadIdx.x < 2) highest[threadIdx.x] = 0;

  const int count = lines * tiles.n, width = tiles.side_by_side ? lines : tiles.n;
  for (int v = threadIdx.x; tiles.in_shared && v < count; v += kBlock) {
    const int slow = v / width, fast = v % width;
    tile[v] = in[first + (tiles.side_by_side ? slow * step + fast : slow * line_step + fast)];
  }
  __syncthreads();

  Peak<T> peak{0, 0};
  for (int v = threadIdx.x; v < count; v += kBlock) {
    const int slow = v / width, fast = v % width;
    const int line = tiles.side_by_side ? fast : slow, i = tiles.side_by_side ? slow : fast;
    const Line<const T> values = !tiles.in_shared
                                     ? Line<const T>{in + first + line * line_step, step}
                                 : tiles.side_by_side ? Line<const T>{tile + line, lines}
                                                      : Line<const T>{tile + line * tiles.n, 1};
    const T square = search_line(values, tiles.n, i, unit);
    peak.see(square);
    const std::int64_t to = first + line * line_step + i * step;
    if (roots != nullptr) {
      roots[to] = distance(square, unit_length);
    } else {
      out[to] = square;
    }
  }
  if (peaks == nullptr) return;
  atomicMax(&highest[0], ordered(peak.inside));
  atomicMax(&highest[1], ordered(peak.outside));
  __syncthreads();
  if (threadIdx.x < 2)
    atomicMax(peaks + 2 * (group / groups_an_item) + threadIdx.x, highest[threadIdx.x]);
}

// Turns squares into normalized distances. `squares` and `out` may be the same memory: a thread
// reads and writes only its own element. With equal spacing the inner boundary is where the squared
// distance is 1.
template <typename T>
__global__ void normalize(const std::uint8_t* mask, const T* squares, float* out, const int* peaks,
                          Volumes size, unsigned blocks_an_item) {
  const std::int64_t item = blockIdx.x / blocks_an_item;
  const std::int64_t voxels = size.voxels();
  const std::int64_t plane = size.plane();
  const std::int64_t within = std::int64_t{blockIdx.x % blocks_an_item} * kBlock + threadIdx.x;
  if (within >= voxels) return;
  const std::int64_t voxel = item * voxels + within;
  const T v = squares[voxel];
  const Peak<float> longest{sqrtf(static_cast<float>(restored(peaks[2 * item], T{}))),
                            sqrtf(static_cast<float>(restored(peaks[2 * item + 1], T{})))};
  bool boundary;
  if constexpr (std::is_integral_v<T>) {
    boundary = v == -1;
  } else {
    boundary = on_inner_boundary(mask + item * voxels, size, static_cast<int>(within / plane),
                                 static_cast<int>(within % plane / size.z),
                                 static_cast<int>(within % size.z));
  }
  out[voxel] = normalized_distance(v, boundary, longest);
}

// As many lines in a tile as fit in shared memory, up to a few warps of work. Lines that are too
// long for shared memory stay in global memory.
Tiles tiles_of(int n, int lines_a_group, std::int64_t groups, bool side_by_side) {
  const int room = kDynamicSharedBytes / static_cast<int>(sizeof(float)) / n;
  const int wanted = side_by_side ? kLanes : larger(1, 8 * kBlock / n);
  return {n,       larger(1, smaller(wanted, room)), lines_a_group,
          groups,  std::int64_t{n} * lines_a_group,  side_by_side,
          room > 0};
}

template <typename T>
cudaError_t launch_search(const T* in, T* out, float* roots, int* peaks, const Tiles& tiles,
                          std::int64_t items, T unit, float unit_length, cudaStream_t stream) {
  const std::size_t shared = tiles.in_shared ? sizeof(T) * tiles.n * tiles.lines : 0;
  return launch(search<T>, tiles.groups * tiles.a_group(), kBlock, shared, stream, in, out, roots,
                peaks, tiles, tiles.a_group(), tiles.groups / items, unit, unit_length);
}

template <typename T>
cudaError_t run(const std::uint8_t* mask, float* out, void* scratch, const Volumes& size,
                const Spacing& spacing, bool normalized, cudaStream_t stream) {
  static_assert(sizeof(T) == sizeof(float), "the result's memory holds intermediate values");
  const Units<T> units(spacing);
  const std::int64_t voxels = size.items * size.voxels();
  const bool volume = size.y > 1;
  T *result = reinterpret_cast<T*>(out), *between = static_cast<T*>(scratch);
  int* peaks = normalized ? reinterpret_cast<int*>(between + voxels) : nullptr;
  if (normalized)
    if (const auto error = cudaMemsetAsync(peaks, 0, 2 * size.items * sizeof(int), stream))
      return error;

  // The bits of 32 columns of about 12000 voxels fill a block's shared memory. The bits of 8
  // columns fit for any volume.
  const int columns = size.x <= kDynamicSharedBytes / 4 / kLanes * 32 ? kLanes : 8;
  const auto of_item = static_cast<unsigned>(blocks_for(size.plane(), columns));
  const std::size_t words = sizeof(std::uint32_t) * columns * blocks_for(size.x, 32);
  if (const auto error = launch(scan_x<T>, size.items * of_item, kBlock, words, stream, mask,
                                volume ? result : between, size, columns, of_item, units.x))
    return error;
  if (volume) {
    const Tiles along_y = tiles_of(size.y, size.z, size.items * size.x, true);
    if (const auto error = launch_search<T>(result, between, nullptr, nullptr, along_y, size.items,
                                            units.y, 1, stream))
      return error;
  }
  const Tiles along_z = tiles_of(size.z, size.x * size.y, size.items, false);
  if (const auto error = launch_search<T>(between, result, normalized ? nullptr : out, peaks,
                                          along_z, size.items, units.z, units.length, stream))
    return error;
  if (!normalized) return cudaSuccess;
  const auto pieces = static_cast<unsigned>(blocks_for(size.voxels(), kBlock));
  return launch(normalize<T>, size.items * pieces, kBlock, 0, stream, mask, result, out, peaks,
                size, pieces);
}

}  // namespace

std::size_t signed_distance_scratch(const Volumes& size) {
  return size.items * (size.voxels() + 2) * sizeof(int);
}

cudaError_t launch_signed_distance(const std::uint8_t* mask, float* out, void* scratch,
                                   const Volumes& size, const Spacing& spacing, bool normalized,
                                   cudaStream_t stream) {
  return spacing.equal() ? run<std::int32_t>(mask, out, scratch, size, spacing, normalized, stream)
                         : run<float>(mask, out, scratch, size, spacing, normalized, stream);
}

}  // namespace semiseg
