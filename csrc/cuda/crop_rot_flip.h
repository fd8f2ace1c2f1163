#pragma once

#include <cuda_runtime_api.h>

#include "../core/crop_rot_flip.h"

namespace semiseg {

// A volume and its label, contiguous and on the device that is current.
struct CropSample {
  const void *image, *label;
  CropView view;
};

// Where the crops go and how many bytes an element has.
struct CropResult {
  void* out;
  int bytes;
};

// Writes `count` crops of the given extents (not empty): all of the images, and of the labels the
// first `labelled`.
cudaError_t launch_crop_rot_flip(const CropSample* samples, std::int64_t count,
                                 std::int64_t labelled, const CropResult& image,
                                 const CropResult& label, int x, int y, int z, cudaStream_t stream);

}  // namespace semiseg
