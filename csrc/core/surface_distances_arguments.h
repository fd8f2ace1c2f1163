#pragma once

// Checks and unpacks the operator's arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include "arguments.h"
#include "surface_distances.h"

namespace semiseg::surfaces {

struct Arguments {
  at::Tensor pred, target;  // contiguous uint8, nonzero is foreground
  Grid grid;
  int z;
  bool equal;  // spacing
  SquaredSteps<std::int64_t> whole;
  SquaredSteps<double> real;

  Arguments(const at::Tensor& given_pred, const at::Tensor& given_target,
            at::ArrayRef<double> spacing)
      : pred(checked_mask("surface_distances", given_pred)),
        target(checked_mask("surface_distances", given_target)) {
    TORCH_CHECK_VALUE(pred.sizes() == target.sizes() && pred.device() == target.device(),
                      "surface_distances: expected masks of one shape on one device, got ",
                      pred.sizes(), " on ", pred.device(), " and ", target.sizes(), " on ",
                      target.device());
    TORCH_CHECK_VALUE(pred.dim() == 2 || pred.dim() == 3,
                      "surface_distances: expected masks (X, Y) or (X, Y, Z), got ", pred.sizes());
    TORCH_CHECK_VALUE(static_cast<std::int64_t>(spacing.size()) == pred.dim(),
                      "surface_distances: expected one spacing an axis, got ", spacing, " for ",
                      pred.sizes());
    // 64 less, so that a step past the end of an axis still fits an int.
    TORCH_CHECK_VALUE(pred.numel() < (std::int64_t{1} << 31) - 64,
                      "surface_distances: ", pred.sizes(), " reaches 2^31 - 64 voxels");
    const bool image = pred.dim() == 2;
    const auto extent = [&](std::int64_t axis) {
      return pred.numel() == 0 ? 0 : static_cast<int>(pred.size(axis));
    };
    z = extent(-1);
    grid = {extent(0), image ? 1 : extent(1), z / kWordBits + (z % kWordBits != 0), image};
    const double x = spacing.front(), y = image ? x : spacing[1];
    equal = x == y && y == spacing.back();
    whole = {1, 1, 1, x};
    real = {x * x, y * y, spacing.back() * spacing.back(), 1};
  }
};

}  // namespace semiseg::surfaces
