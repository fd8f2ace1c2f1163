#pragma once

#include <cuda_runtime_api.h>

#include "../core/signed_distance.h"

namespace semiseg {

// Bytes of device scratch memory that the launcher needs.
std::size_t signed_distance_scratch(const Volumes& size);

// Signed distances of `mask` to `out`, both contiguous and not empty, on the device that is
// current.
cudaError_t launch_signed_distance(const std::uint8_t* mask, float* out, void* scratch,
                                   const Volumes& size, const Spacing& spacing, bool normalized,
                                   cudaStream_t stream);

}  // namespace semiseg
