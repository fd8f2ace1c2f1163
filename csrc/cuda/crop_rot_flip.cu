// crop_rot_flip on CUDA: one thread for each voxel of the image and its label.

#include "crop_rot_flip.h"
#include "launch.h"

namespace semiseg {
namespace {

constexpr int kBlock = 256;
constexpr int kSamples = 32;  // of one launch: as many as fit into a kernel's parameters, 4 KiB

struct Samples {
  CropSample of[kSamples];
};
static_assert(sizeof(Samples) < 4000, "a kernel's parameters hold 4 KiB");

// out[to] = inside ? in[from] : 0
template <typename Element>
__device__ void gather(const void* in, std::int64_t from, void* out, std::int64_t to, bool inside) {
  static_cast<Element*>(out)[to] = inside ? static_cast<const Element*>(in)[from] : Element{};
}

__device__ void gather(const void* in, std::int64_t from, const CropResult& result, std::int64_t to,
                       bool inside) {
  switch (result.bytes) {
    case 1:
      return gather<std::uint8_t>(in, from, result.out, to, inside);
    case 2:
      return gather<std::uint16_t>(in, from, result.out, to, inside);
    case 4:
      return gather<std::uint32_t>(in, from, result.out, to, inside);
    case 8:
      return gather<std::uint64_t>(in, from, result.out, to, inside);
    default:
      return gather<Bytes16>(in, from, result.out, to, inside);
  }
}

// Sample `first` + s of the batch is number s of `samples`.
__global__ void crop(Samples samples, std::int64_t first, std::int64_t labelled,
                     unsigned blocks_a_sample, CropResult image, CropResult label, unsigned x,
                     unsigned y, unsigned z) {
  const unsigned s = blockIdx.x / blocks_a_sample, voxels = x * y * z;
  const unsigned voxel = blockIdx.x % blocks_a_sample * kBlock + threadIdx.x;
  if (voxel >= voxels) return;
  const CropSample& sample = samples.of[s];
  const CropView& view = sample.view;
  const unsigned row = voxel / z;
  const int i = static_cast<int>(row / y);
  const int j = static_cast<int>(row % y);
  const int k = static_cast<int>(voxel % z);
  const bool inside = view.holds(0, i) && view.holds(1, j) && view.holds(2, k);
  const std::int64_t from = view.row(i, j) + k * view.step[2], to = (first + s) * voxels + voxel;
  gather(sample.image, from, image, to, inside);
  if (first + s < labelled) gather(sample.label, from, label, to, inside);
}

}  // namespace

cudaError_t launch_crop_rot_flip(const CropSample* samples, std::int64_t count,
                                 std::int64_t labelled, const CropResult& image,
                                 const CropResult& label, int x, int y, int z,
                                 cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(blocks_for(std::int64_t{x} * y * z, kBlock));
  for (std::int64_t first = 0; first < count; first += kSamples) {
    const int here = count - first < kSamples ? static_cast<int>(count - first) : kSamples;
    Samples chunk{};
    for (int s = 0; s < here; ++s) chunk.of[s] = samples[first + s];
    const auto error = launch(crop, std::int64_t{here} * blocks, kBlock, 0, stream, chunk, first,
                              labelled, blocks, image, label, x, y, z);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace semiseg
