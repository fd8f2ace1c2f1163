#pragma once

#include <cuda_runtime_api.h>

#include "../core/cutmix.h"

namespace semiseg {

// Splices `count` (0, 1 or 2) pairs in one launch. The pairs are contiguous and not empty. The
// pairs and the boxes are on the current device.
cudaError_t launch_splice(const SplicePair* pairs, int count, const SpliceSize& size,
                          const SpliceBoxes& boxes, cudaStream_t stream);

}  // namespace semiseg
