#pragma once

#include <cuda_runtime_api.h>

#include "../core/crop_rot_flip.h"

namespace semiseg {

// A volume and its label, contiguous and on the current device.
struct CropSample {
  const void *image, *label;
  CropView view;
};

// Where the crops are written, and the bytes of one element.
struct CropResult {
  void* out;
  int bytes;
};

// Writes `count` crops of the given extents, which are not empty: crops of all images, and of the
// first `labelled` labels.
cudaError_t launch_crop_rot_flip(const CropSample* samples, std::int64_t count,
                                 std::int64_t labelled, const CropResult& image,
                                 const CropResult& label, int x, int y, int z, cudaStream_t stream);

}  // namespace semiseg
