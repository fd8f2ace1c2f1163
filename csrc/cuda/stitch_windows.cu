// stitch_add and stitch_divide on CUDA: one thread for each voxel, which visits the windows that
// cover it. Neighbouring threads take neighbouring z, so that they read logits and total side by
// side. Every logit is read once.

#include "launch.h"
#include "stitch_windows.h"

namespace semiseg {
namespace {

constexpr int kBlock = 256;

struct Voxel {
  int x, y, z;
};

// Voxel `index` of a box of fewer than 2^31 voxels.
__device__ Voxel voxel_of(unsigned index, const int (&origin)[3], const int (&extent)[3]) {
  const unsigned row = index / extent[2];
  return {origin[0] + static_cast<int>(row / extent[1]),
          origin[1] + static_cast<int>(row % extent[1]),
          origin[2] + static_cast<int>(index % extent[2])};
}

// Calls visit(window, px, py, pz) for the windows of the run that cover a voxel, in the grid's
// order.
template <typename Visit>
__device__ void visit_voxel(const WindowGrid& grid, const WindowRun& run, const Voxel& at,
                            const Visit& visit) {
  visit_column(grid, run, at.x, at.y, [&](std::int64_t window, int px, int py, int start) {
    const int pz = at.z - start;
    if (pz >= 0 && pz < grid.patch[2]) visit(window, px, py, pz);
  });
}

__device__ float weight_at(const float* weights, const WindowGrid& grid, int px, int py, int pz) {
  return weights ? __ldg(weights + (std::int64_t{px} * grid.patch[1] + py) * grid.patch[2] + pz)
                 : 1.f;
}

// Keeps all classes of a voxel in registers.
template <typename Scalar, int C>
__global__ void add_windows(float* total, const Scalar* logits, const float* weights,
                            LogitStrides strides, WindowGrid grid, WindowRun run,
                            Activation activation) {
  const std::int64_t index = thread_index(), voxels = grid.voxels();
  if (index >= run.voxels()) return;
  const Voxel at = voxel_of(static_cast<unsigned>(index), run.origin, run.extent);
  float* const here = total + grid.voxel(at.x, at.y, at.z);
  float sum[C];
  for (int c = 0; c < C; ++c) sum[c] = here[c * voxels];
  visit_voxel(grid, run, at, [&](std::int64_t window, int px, int py, int pz) {
    const Scalar* logit =
        logits + window * strides.window + px * strides.x + py * strides.y + pz * strides.z;
    float value[C];
    for (int c = 0; c < C; ++c) value[c] = to_float(logit[c * strides.channel]);
    if (activation == Activation::kSoftmax) softmax(value);
    if (activation == Activation::kSigmoid)
      for (int c = 0; c < C; ++c) value[c] = sigmoid(value[c]);
    const float weight = weight_at(weights, grid, px, py, pz);
    for (int c = 0; c < C; ++c) sum[c] += weight * value[c];
  });
  for (int c = 0; c < C; ++c) here[c * voxels] = sum[c];
}

// Any number of classes: the logits of a voxel are read up to three times, and the sums are kept in
// memory.
template <typename Scalar>
__global__ void add_windows_of_many(float* total, const Scalar* logits, const float* weights,
                                    std::int64_t classes, LogitStrides strides, WindowGrid grid,
                                    WindowRun run, Activation activation) {
  const std::int64_t index = thread_index(), voxels = grid.voxels();
  if (index >= run.voxels()) return;
  const Voxel at = voxel_of(static_cast<unsigned>(index), run.origin, run.extent);
  float* const here = total + grid.voxel(at.x, at.y, at.z);
  visit_voxel(grid, run, at, [&](std::int64_t window, int px, int py, int pz) {
    const Scalar* logit =
        logits + window * strides.window + px * strides.x + py * strides.y + pz * strides.z;
    const auto value = [&](std::int64_t c) { return to_float(logit[c * strides.channel]); };
    float weight = weight_at(weights, grid, px, py, pz);
    if (activation == Activation::kSoftmax) {
      float high = value(0), parts = 0;
      for (std::int64_t c = 1; c < classes; ++c) high = value(c) > high ? value(c) : high;
      for (std::int64_t c = 0; c < classes; ++c) parts += exp_of_negative(value(c) - high);
      weight /= parts;
      for (std::int64_t c = 0; c < classes; ++c)
        here[c * voxels] += weight * exp_of_negative(value(c) - high);
    } else {
      const bool plain = activation == Activation::kNone;
      for (std::int64_t c = 0; c < classes; ++c)
        here[c * voxels] += weight * (plain ? value(c) : sigmoid(value(c)));
    }
  });
}

__global__ void divide(float* total, const float* weights, std::int64_t classes, WindowGrid grid,
                       WindowRun all) {
  const std::int64_t index = thread_index(), voxels = grid.voxels();
  if (index >= voxels) return;
  const Voxel at = voxel_of(static_cast<unsigned>(index), all.origin, all.extent);
  float cover = 0;
  if (weights) {
    visit_voxel(grid, all, at, [&](std::int64_t, int px, int py, int pz) {
      cover += weight_at(weights, grid, px, py, pz);
    });
  } else {
    cover = static_cast<float>(grid.covering(0, at.x) * grid.covering(1, at.y)) *
            grid.covering(2, at.z);
  }
  for (std::int64_t c = 0; c < classes; ++c) total[c * voxels + index] /= cover;
}

}  // namespace

template <typename Scalar>
cudaError_t launch_stitch_add(float* total, const Scalar* logits, const float* weights,
                              std::int64_t classes, const LogitStrides& strides,
                              const WindowGrid& grid, const WindowRun& run, Activation activation,
                              cudaStream_t stream) {
  const std::int64_t blocks = blocks_for(run.voxels(), kBlock);
  const auto go = [&](auto* kernel) {
    return launch(kernel, blocks, kBlock, 0, stream, total, logits, weights, strides, grid, run,
                  activation);
  };
  switch (classes) {
    case 1:
      return go(add_windows<Scalar, 1>);
    case 2:
      return go(add_windows<Scalar, 2>);
    case 3:
      return go(add_windows<Scalar, 3>);
    case 4:
      return go(add_windows<Scalar, 4>);
    default:
      return launch(add_windows_of_many<Scalar>, blocks, kBlock, 0, stream, total, logits, weights,
                    classes, strides, grid, run, activation);
  }
}

template cudaError_t launch_stitch_add(float*, const float*, const float*, std::int64_t,
                                       const LogitStrides&, const WindowGrid&, const WindowRun&,
                                       Activation, cudaStream_t);
template cudaError_t launch_stitch_add(float*, const Float16*, const float*, std::int64_t,
                                       const LogitStrides&, const WindowGrid&, const WindowRun&,
                                       Activation, cudaStream_t);
template cudaError_t launch_stitch_add(float*, const BFloat16*, const float*, std::int64_t,
                                       const LogitStrides&, const WindowGrid&, const WindowRun&,
                                       Activation, cudaStream_t);

cudaError_t launch_stitch_divide(float* total, const float* weights, std::int64_t classes,
                                 const WindowGrid& grid, cudaStream_t stream) {
  const WindowRun all(grid, 0, grid.windows());
  return launch(divide, blocks_for(grid.voxels(), kBlock), kBlock, 0, stream, total, weights,
                classes, grid, all);
}

}  // namespace semiseg
