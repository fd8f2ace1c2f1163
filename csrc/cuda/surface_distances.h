#pragma once

#include <cuda_runtime_api.h>

#include "../core/surface_distances.h"

namespace semiseg::surfaces {

// Device memory for both masks, prediction first. n is grid.size().
struct DeviceMemory {
  Word* bits;    // 2 n, the masks; free for other use once the surfaces are marked
  Word* rows;    // 2 n, the surfaces
  Word* tiles;   // 2 grid.tiled().size()
  Word* blocks;  // 2 grid.tiled().tiled().size()
  int* sizes;    // 2 n, the number of surface voxels of each word
  // 5, zero at first: the voxels of prediction, target and both, then of the two surfaces.
  unsigned long long* totals;
};

// Fills all of that memory from contiguous masks with z voxels a row.
cudaError_t launch_mark(const std::uint8_t* pred, const std::uint8_t* target,
                        const DeviceMemory& memory, const Grid& grid, int z, cudaStream_t stream);

// Writes the distances of the `there` + `back` surface voxels. `ends` is the running sum of the
// sizes. `voxels` has room for there + back positions.
template <typename T>
cudaError_t launch_measure(const DeviceMemory& memory, const std::int64_t* ends, int* voxels,
                           double* distances_there, double* distances_back, std::int64_t there,
                           std::int64_t back, const Grid& grid, int z, const SquaredSteps<T>& step,
                           cudaStream_t stream);

}  // namespace semiseg::surfaces
