#pragma once

#include <cuda_runtime_api.h>

#include "../core/signed_distance.h"

namespace semiseg {

// Bytes of device scratch memory that the launcher needs.
std::size_t signed_distance_scratch(const Volumes& size);

// Writes the signed distances of `mask` to `out`. Both are contiguous, not empty, and on the
// current device.
cudaError_t launch_signed_distance(const std::uint8_t* mask, float* out, void* scratch,
                                   const Volumes& size, const Spacing& spacing, bool normalized,
                                   cudaStream_t stream);

}  // namespace semiseg
