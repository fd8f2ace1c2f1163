#pragma once

#include <cuda_runtime_api.h>

#include "../core/cutmix.h"

namespace semiseg {

// Splices `count` (0, 1 or 2) pairs in one launch, all contiguous and not empty and the boxes too
// on the device that is current.
cudaError_t launch_splice(const SplicePair* pairs, int count, const SpliceSize& size,
                          const SpliceBoxes& boxes, cudaStream_t stream);

}  // namespace semiseg
