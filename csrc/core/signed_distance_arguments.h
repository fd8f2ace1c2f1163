#pragma once

// Checks and unpacks the operator's arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include "arguments.h"
#include "signed_distance.h"

namespace semiseg {

struct SignedDistanceArguments {
  at::Tensor mask;  // contiguous uint8, nonzero is foreground
  Volumes size;
  Spacing spacing;

  SignedDistanceArguments(const at::Tensor& given, at::ArrayRef<double> steps)
      : mask(checked_mask("signed_distance", given)) {
    TORCH_CHECK_VALUE(given.dim() == 3 || given.dim() == 4,
                      "signed_distance: expected a mask (B, X, Y) or (B, X, Y, Z), got ",
                      given.sizes());
    TORCH_CHECK_VALUE(static_cast<std::int64_t>(steps.size()) == given.dim() - 1,
                      "signed_distance: expected one spacing an axis, got ", steps, " for ",
                      given.sizes());

    double diagonal = 0;
    for (const auto extent : given.sizes().slice(1))
      diagonal += static_cast<double>(extent) * extent;
    TORCH_CHECK_VALUE(diagonal < 1 << 30, "signed_distance: the diagonal of ", given.sizes(),
                      " reaches 2^15 voxels");
    const auto extent = [&](std::int64_t axis) { return static_cast<int>(given.size(axis)); };
    const bool volume = given.dim() == 4;
    size = {given.size(0), extent(1), volume ? extent(2) : 1, extent(-1)};
    spacing = {steps.front(), volume ? steps[1] : steps.front(), steps.back()};
  }
};

}  // namespace semiseg
