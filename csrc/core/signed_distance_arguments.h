#pragma once

// What both devices read from the operator's arguments. Includes torch, so no .cu file includes this.

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

#include "signed_distance.h"

namespace semiseg {

struct SignedDistanceArguments {
  at::Tensor mask;  // contiguous uint8, nonzero is foreground
  Volumes size;
  std::array<double, 3> spacing;  // along x, y, z
  bool equal_spacing;             // then squared distances are integers in units of spacing[0] squared

  SignedDistanceArguments(const at::Tensor& given, at::ArrayRef<double> steps) {
    TORCH_CHECK_TYPE(at::isIntegralType(given.scalar_type(), /*includeBool=*/true),
                     "signed_distance: expected a bool or integer mask, got ", given.scalar_type());
    TORCH_CHECK_VALUE(given.dim() == 3 || given.dim() == 4,
                      "signed_distance: expected a mask (B, X, Y) or (B, X, Y, Z), got ", given.sizes());
    TORCH_CHECK_VALUE(static_cast<std::int64_t>(steps.size()) == given.dim() - 1,
                      "signed_distance: expected one spacing an axis, got ", steps, " for ", given.sizes());
    const bool one_byte = given.element_size() == 1;
    mask = (one_byte ? given : given.ne(0)).contiguous().view(at::kByte);

    double diagonal = 0;
    for (const auto extent : given.sizes().slice(1)) diagonal += static_cast<double>(extent) * extent;
    TORCH_CHECK_VALUE(diagonal < 1 << 30, "signed_distance: the diagonal of ", given.sizes(), " reaches 2^15 voxels");
    const auto extent = [&](std::int64_t axis) { return static_cast<int>(given.size(axis)); };
    const bool volume = given.dim() == 4;
    size = {given.size(0), extent(1), volume ? extent(2) : 1, extent(-1)};
    spacing = {steps.front(), volume ? steps[1] : steps.front(), steps.back()};
    equal_spacing = std::all_of(steps.begin(), steps.end(), [&](double step) { return step == steps.front(); });
  }

  // Squared spacing as the algorithm counts it.
  template <typename T>
  std::array<T, 3> units() const {
    if (equal_spacing) return {1, 1, 1};
    return {static_cast<T>(spacing[0] * spacing[0]), static_cast<T>(spacing[1] * spacing[1]),
            static_cast<T>(spacing[2] * spacing[2])};
  }
};

}  // namespace semiseg
