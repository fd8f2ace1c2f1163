#pragma once

// Checks and unpacks the operator's arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "largest_component.h"

namespace semiseg::components {

struct Arguments {
  at::Tensor labels;  // contiguous
  Grid grid;
  int classes;  // at most as many as the type can represent

  Arguments(const at::Tensor& given, std::int64_t num_classes, std::int64_t connectivity) {
    TORCH_CHECK_TYPE(at::isIntegralType(given.scalar_type(), /*includeBool=*/true),
                     "largest_component: expected bool or integer labels, got ",
                     given.scalar_type());
    TORCH_CHECK_VALUE(given.dim() == 3 || given.dim() == 4,
                      "largest_component: expected labels (B, X, Y) or (B, X, Y, Z), got ",
                      given.sizes());
    TORCH_CHECK_VALUE(num_classes >= 2 && num_classes <= 1 << 15,
                      "largest_component: expected 2 to 32768 classes with the background, got ",
                      num_classes);
    const int rank = given.dim() == 3     ? connectivity == 4   ? 1
                                            : connectivity == 8 ? 2
                                                                : 0
                     : connectivity == 6  ? 1
                     : connectivity == 18 ? 2
                     : connectivity == 26 ? 3
                                          : 0;
    TORCH_CHECK_VALUE(rank > 0, "largest_component: no connectivity ", connectivity, " for labels ",
                      given.sizes());
    const auto sizes = given.sizes().slice(1);
    checked_voxels("largest_component", sizes);
    if (given.scalar_type() == at::kBool) num_classes = 2;
    if (given.scalar_type() == at::kByte) num_classes = std::min<std::int64_t>(num_classes, 256);
    if (given.scalar_type() == at::kChar) num_classes = std::min<std::int64_t>(num_classes, 128);
    classes = static_cast<int>(num_classes);
    labels = given.contiguous();
    // Axes of one voxel are left out. Then rows are as long as possible, and x has planes to share
    // among threads.
    std::vector<int> extents;
    for (const auto extent : sizes)
      if (extent != 1) extents.push_back(static_cast<int>(extent));
    extents.insert(extents.begin() + (extents.size() > 1), 3 - extents.size(), 1);
    grid = {extents[0], extents[1], extents[2], rank};
  }
};

// Calls use(T{}) with the unsigned type of `bytes` bytes.
template <typename Use>
void with_unsigned(std::size_t bytes, const Use& use) {
  switch (bytes) {
    case 1:
      return use(std::uint8_t{});
    case 2:
      return use(std::uint16_t{});
    case 4:
      return use(std::uint32_t{});
    default:
      return use(std::uint64_t{});
  }
}

}  // namespace semiseg::components
