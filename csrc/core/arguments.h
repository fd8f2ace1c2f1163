#pragma once

// Checks of arguments that several operators share. Includes torch, so no .cu file includes this
// file.

#include <ATen/ATen.h>

namespace semiseg {

// The number of voxels of an image or volume; below 2^31, so that an int can number them.
inline std::int64_t checked_voxels(const char* name, at::IntArrayRef extents) {
  std::int64_t voxels = 1;
  for (const auto extent : extents)
    if (extent == 0) return 0;
  for (const auto extent : extents) {
    TORCH_CHECK_VALUE(extent > 0 && extent <= INT32_MAX / voxels, name,
                      ": expected an image or volume of fewer than 2^31 voxels, got ", extents);
    voxels *= extent;
  }
  return voxels;
}

// A mask as contiguous uint8, nonzero where it is foreground.
inline at::Tensor checked_mask(const char* name, const at::Tensor& given) {
  TORCH_CHECK_TYPE(at::isIntegralType(given.scalar_type(), /*includeBool=*/true), name,
                   ": expected a bool or integer mask, got ", given.scalar_type());
  return (given.element_size() == 1 ? given : given.ne(0)).contiguous().view(at::kByte);
}

}  // namespace semiseg
