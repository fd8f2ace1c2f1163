// signed_distance on CUDA: one thread a line along x, y and z, then one thread a voxel takes roots and scales.

#include "signed_distance.h"

namespace semiseg {
namespace {

constexpr int kLineBlock = 64;  // small, so that the lines of a few crops spread over all multiprocessors
constexpr int kVoxelBlock = 256;

unsigned blocks(std::int64_t threads, int block) { return static_cast<unsigned>((threads + block - 1) / block); }

__device__ std::int64_t thread_index() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// Non-negative floats order as their bits do.
__device__ int ordered(std::int32_t square) { return square; }
__device__ int ordered(float square) { return __float_as_int(square); }
__device__ std::int32_t restored(int bits, std::int32_t) { return bits; }
__device__ float restored(int bits, float) { return __int_as_float(bits); }

// Neighbouring threads take neighbouring z, so that they read and write side by side.
template <typename T>
__global__ void scan_x(const std::uint8_t* mask, T* out, Volumes size, T unit) {
  const std::int64_t line = thread_index(), plane = size.plane();
  if (line >= size.items * plane) return;
  const std::int64_t first = line / plane * size.voxels() + line % plane;
  scan_lines<T>(mask + first, out + first, size.x, plane, 1, unit);
}

template <typename T>
__global__ void solve_y(const T* in, T* out, int* hull, Volumes size, T unit) {
  const std::int64_t line = thread_index();
  if (line >= size.items * size.x * size.z) return;
  const std::int64_t first = line / size.z * size.plane() + line % size.z;
  solve_line<T>({in + first, size.z}, {out + first, size.z}, {hull + first, size.z}, size.y, unit);
}

// The last axis also collects each item's peaks. The hulls of neighbouring lines are interleaved.
template <typename T>
__global__ void solve_z(const T* in, T* out, int* hull, int* peaks, Volumes size, T unit) {
  const std::int64_t line = thread_index(), lines = size.items * size.x * size.y;
  if (line >= lines) return;
  const Line<T> solved{out + line * size.z, 1};
  solve_line<T>({in + line * size.z, 1}, solved, {hull + line, lines}, size.z, unit);
  Peak<T> peak{0, 0};
  for (int z = 0; z < size.z; ++z) peak.see(solved[z]);
  int* shared = peaks + 2 * (line / (std::int64_t{size.x} * size.y));
  atomicMax(shared, ordered(peak.inside));
  atomicMax(shared + 1, ordered(peak.outside));
}

// `squares` and `out` may be the same memory: a thread reads and writes its own element alone.
template <typename T>
__global__ void finish(const std::uint8_t* mask, const T* squares, float* out, const int* peaks, Volumes size,
                       float unit_length, bool normalized) {
  const std::int64_t voxel = thread_index(), voxels = size.voxels(), plane = size.plane();
  if (voxel >= size.items * voxels) return;
  const T v = squares[voxel];
  if (!normalized) {
    out[voxel] = distance(v, unit_length);
    return;
  }
  const std::int64_t item = voxel / voxels, within = voxel % voxels;
  const Peak<float> longest{sqrtf(static_cast<float>(restored(peaks[2 * item], T{}))),
                            sqrtf(static_cast<float>(restored(peaks[2 * item + 1], T{})))};
  const int x = static_cast<int>(within / plane), y = static_cast<int>(within % plane / size.z);
  const int z = static_cast<int>(within % size.z);
  const bool boundary = on_inner_boundary(mask + item * voxels, size, x, y, z);
  out[voxel] = normalized_distance(v, boundary, longest);
}

template <typename T>
cudaError_t launch(const std::uint8_t* mask, float* out, void* scratch, const Volumes& size, const Spacing& spacing,
                   bool normalized, cudaStream_t stream) {
  static_assert(sizeof(T) == sizeof(float), "the result's memory holds intermediate values");
  const Units<T> units(spacing);
  const std::int64_t voxels = size.items * size.voxels();
  T *first = reinterpret_cast<T*>(out), *second = static_cast<T*>(scratch);
  int *hull = reinterpret_cast<int*>(second + voxels), *peaks = hull + voxels;
  if (const auto error = cudaMemsetAsync(peaks, 0, 2 * size.items * sizeof(int), stream)) return error;

  const std::int64_t columns = size.items * size.plane(), rows = size.items * size.x * size.z;
  const std::int64_t lines = size.items * size.x * size.y;
  scan_x<T><<<blocks(columns, kLineBlock), kLineBlock, 0, stream>>>(mask, first, size, units.x);
  solve_y<T><<<blocks(rows, kLineBlock), kLineBlock, 0, stream>>>(first, second, hull, size, units.y);
  solve_z<T><<<blocks(lines, kLineBlock), kLineBlock, 0, stream>>>(second, first, hull, peaks, size, units.z);
  finish<T><<<blocks(voxels, kVoxelBlock), kVoxelBlock, 0, stream>>>(mask, first, out, peaks, size, units.length,
                                                                     normalized);
  return cudaGetLastError();
}

}  // namespace

std::size_t signed_distance_scratch(const Volumes& size) { return size.items * (2 * size.voxels() + 2) * sizeof(int); }

cudaError_t launch_signed_distance(const std::uint8_t* mask, float* out, void* scratch, const Volumes& size,
                                   const Spacing& spacing, bool normalized, cudaStream_t stream) {
  return spacing.equal() ? launch<std::int32_t>(mask, out, scratch, size, spacing, normalized, stream)
                         : launch<float>(mask, out, scratch, size, spacing, normalized, stream);
}

}  // namespace semiseg
