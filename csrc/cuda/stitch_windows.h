#pragma once

#include <cuda_runtime_api.h>

#include "../core/stitch_windows.h"

namespace semiseg {

// Adds the windows of `run` to `total`, contiguous `(C, *S)`. The windows lie at `logits` with the
// given strides. `weights` is `(*P)` or null. Scalar is float, Float16 or BFloat16.
template <typename Scalar>
cudaError_t launch_stitch_add(float* total, const Scalar* logits, const float* weights,
                              std::int64_t classes, const LogitStrides& strides,
                              const WindowGrid& grid, const WindowRun& run, Activation activation,
                              cudaStream_t stream);

// Divides `total` by the sum of the weights over each voxel, or by the number of windows if there
// are no weights.
cudaError_t launch_stitch_divide(float* total, const float* weights, std::int64_t classes,
                                 const WindowGrid& grid, cudaStream_t stream);

}  // namespace semiseg
