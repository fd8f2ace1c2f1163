// surface_distances on CUDA. One thread packs eight voxels to bits. One thread for each word marks
// both surfaces. One thread for each word of a tile combines the tile's rows. Then the host learns
// how many surface voxels there are. One thread for each word lists its surface voxels in scan
// order, and one thread for each surface voxel searches.

#include "launch.h"
#include "surface_distances.h"

namespace semiseg::surfaces {
namespace {

constexpr int kBlock = 256;
constexpr int kSearchBlock = 128;  // searches differ in length, and small blocks end sooner
constexpr int kWordBytes = kWordBits / 8;

// Writes byte b of the bits. Their order in memory is little-endian, as on every device.
__global__ void pack(const std::uint8_t* mask, std::uint8_t* bytes, Grid grid, int z) {
  const std::int64_t index = thread_index();
  if (index >= grid.size() * kWordBytes) return;
  const std::int64_t row_bytes = std::int64_t{grid.words} * kWordBytes, row = index / row_bytes;
  const std::int64_t first = index % row_bytes * 8;
  unsigned byte = 0;
  for (int bit = 0; bit < 8; ++bit)
    if (first + bit < z && mask[row * z + first + bit] != 0) byte |= 1u << bit;
  bytes[index] = static_cast<std::uint8_t>(byte);
}

__global__ void mark(DeviceMemory memory, Grid grid) {
  __shared__ unsigned counts[5];
  if (threadIdx.x < 5) counts[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t words = grid.size(), index = thread_index();
  if (index < words) {
    const std::int64_t row = index / grid.words;
    const int i = static_cast<int>(row / grid.y), j = static_cast<int>(row % grid.y);
    const int k = static_cast<int>(index % grid.words);
    const Word *pred = memory.bits, *target = pred + words;
    const Word surface_pred = surface_word(pred, grid, i, j, k);
    const Word surface_target = surface_word(target, grid, i, j, k);
    memory.rows[index] = surface_pred;
    memory.rows[words + index] = surface_target;
    memory.sizes[index] = count_bits(surface_pred);
    memory.sizes[words + index] = count_bits(surface_target);
    const Word found[5] = {pred[index], target[index], pred[index] & target[index], surface_pred,
                           surface_target};
    for (int n = 0; n < 5; ++n)
      if (found[n] != 0) atomicAdd(&counts[n], static_cast<unsigned>(count_bits(found[n])));
  }
  __syncthreads();
  if (threadIdx.x < 5 && counts[threadIdx.x] != 0)
    atomicAdd(&memory.totals[threadIdx.x], static_cast<unsigned long long>(counts[threadIdx.x]));
}

// Makes the tiles of two grids that follow each other in memory.
__global__ void tile(const Word* rows, Word* to, Grid grid) {
  const Grid tiles = grid.tiled();
  const std::int64_t index = thread_index();
  if (index >= 2 * tiles.size()) return;
  const std::int64_t mask = index / tiles.size(), row = index % tiles.size() / grid.words;
  const int i = static_cast<int>(row / tiles.y), j = static_cast<int>(row % tiles.y);
  to[index] =
      tile_word(rows + mask * grid.size(), grid, i, j, static_cast<int>(index % grid.words));
}

__global__ void list(const Word* rows, const int* sizes, const std::int64_t* ends, int* voxels,
                     Grid grid, int z) {
  const std::int64_t index = thread_index(), words = grid.size();
  if (index >= 2 * words) return;
  int* to = voxels + (ends[index] - sizes[index]);
  const std::int64_t row = index % words / grid.words;
  const int first = static_cast<int>(row * z + index % grid.words * kWordBits);
  for (Word word = rows[index]; word != 0; word &= word - 1) *to++ = first + zeros_below(word);
}

template <typename T>
__global__ void measure(DeviceMemory memory, const int* voxels, double* distances_there,
                        double* distances_back, std::int64_t there, std::int64_t back, Grid grid,
                        int z, SquaredSteps<T> step) {
  const std::int64_t index = thread_index();
  if (index >= there + back) return;
  const int other = index < there;  // the mask whose surface is searched
  const int voxel = voxels[index], row = voxel / z;
  const Grid tiles = grid.tiled(), blocks = tiles.tiled();
  const Surface surface{memory.rows + other * grid.size(), memory.tiles + other * tiles.size(),
                        memory.blocks + other * blocks.size()};
  const T best = nearest(surface, grid, step, row / grid.y, row % grid.y, voxel % z);
  double* const to = index < there ? distances_there + index : distances_back + (index - there);
  *to = surface_distance(best, step);
}

}  // namespace

cudaError_t launch_mark(const std::uint8_t* pred, const std::uint8_t* target,
                        const DeviceMemory& memory, const Grid& grid, int z, cudaStream_t stream) {
  const std::int64_t words = grid.size();
  for (int mask = 0; mask < 2; ++mask) {
    auto* bytes = reinterpret_cast<std::uint8_t*>(memory.bits + mask * words);
    if (const auto error = launch(pack, blocks_for(words * kWordBytes, kBlock), kBlock, 0, stream,
                                  mask == 0 ? pred : target, bytes, grid, z))
      return error;
  }
  if (const auto error = launch(mark, blocks_for(words, kBlock), kBlock, 0, stream, memory, grid))
    return error;
  const Grid tiles = grid.tiled(), blocks = tiles.tiled();
  if (const auto error = launch(tile, blocks_for(2 * tiles.size(), kBlock), kBlock, 0, stream,
                                memory.rows, memory.tiles, grid))
    return error;
  return launch(tile, blocks_for(2 * blocks.size(), kBlock), kBlock, 0, stream, memory.tiles,
                memory.blocks, tiles);
}

template <typename T>
cudaError_t launch_measure(const DeviceMemory& memory, const std::int64_t* ends, int* voxels,
                           double* distances_there, double* distances_back, std::int64_t there,
                           std::int64_t back, const Grid& grid, int z, const SquaredSteps<T>& step,
                           cudaStream_t stream) {
  if (const auto error = launch(list, blocks_for(2 * grid.size(), kBlock), kBlock, 0, stream,
                                memory.rows, memory.sizes, ends, voxels, grid, z))
    return error;
  return launch(measure<T>, blocks_for(there + back, kSearchBlock), kSearchBlock, 0, stream, memory,
                voxels, distances_there, distances_back, there, back, grid, z, step);
}

template cudaError_t launch_measure(const DeviceMemory&, const std::int64_t*, int*, double*,
                                    double*, std::int64_t, std::int64_t, const Grid&, int,
                                    const SquaredSteps<std::int64_t>&, cudaStream_t);
template cudaError_t launch_measure(const DeviceMemory&, const std::int64_t*, int*, double*,
                                    double*, std::int64_t, std::int64_t, const Grid&, int,
                                    const SquaredSteps<double>&, cudaStream_t);

}  // namespace semiseg::surfaces
