#pragma once

// What both devices read from the operators' arguments. Includes torch, so no .cu file includes this.

#include <ATen/ATen.h>

#include <vector>

#include "cutmix.h"

namespace semiseg {

// The pairs to splice and their results; `a` and `b` alternate in `given`: image, image, label, label.
struct SpliceArguments {
  std::vector<at::Tensor> inputs, results;  // contiguous
  std::vector<SplicePair> pairs;
  at::Tensor box;  // contiguous, on the pairs' device
  SpliceSize size;
  SpliceBoxes boxes;

  SpliceArguments(const char* name, at::ArrayRef<at::Tensor> given, const at::Tensor& corners) {
    const at::Tensor& first = given.front();
    TORCH_CHECK_TYPE(corners.scalar_type() == at::kLong, name, ": expected an int64 box, got ", corners.scalar_type());
    const bool one_for_all = corners.dim() == 2;
    const std::int64_t axes = corners.dim() == 0 ? 0 : corners.size(-1);
    TORCH_CHECK_VALUE((one_for_all || corners.dim() == 3) && corners.size(-2) == 2 && axes >= 1 && axes <= 3, name,
                      ": expected a box (2, D) or (B, 2, D) of D = 1, 2 or 3 axes, got ", corners.sizes());
    TORCH_CHECK_VALUE(first.dim() > axes && (one_for_all || corners.size(0) == first.size(0)), name, ": a box ",
                      corners.sizes(), " does not fit ", first.sizes());
    TORCH_CHECK_VALUE(corners.is_cpu() || corners.device() == first.device(), name, ": the box is on ",
                      corners.device(), " and the volumes on ", first.device());
    box = corners.to(first.device(), /*non_blocking=*/true).contiguous();
    boxes = {box.const_data_ptr<std::int64_t>(), static_cast<int>(axes), one_for_all};

    const at::IntArrayRef space = first.sizes().slice(first.dim() - axes);
    int extents[] = {1, 1, 1};
    std::int64_t voxels = 1;
    for (std::int64_t axis = 0; axis < axes; ++axis) {
      TORCH_CHECK_VALUE(space[axis] == 0 || voxels < (std::int64_t{1} << 31) / space[axis], name,
                        ": expected volumes of fewer than 2^31 voxels, got ", first.sizes());
      voxels *= space[axis];
      extents[volume_axis(static_cast<int>(axis), static_cast<int>(axes))] = static_cast<int>(space[axis]);
    }
    size = {extents[0], extents[1], extents[2]};

    for (std::size_t k = 0; k < given.size(); k += 2) {
      const at::Tensor &a = given[k], &b = given[k + 1];
      TORCH_CHECK_VALUE(a.sizes() == b.sizes(), name, ": expected a pair of one shape, got ", a.sizes(), " and ",
                        b.sizes());
      TORCH_CHECK_TYPE(a.scalar_type() == b.scalar_type(), name, ": expected a pair of one type, got ", a.scalar_type(),
                       " and ", b.scalar_type());
      TORCH_CHECK_VALUE(a.device() == first.device() && b.device() == first.device(), name,
                        ": expected tensors on one device, got ", first.device(), ", ", a.device(), " and ",
                        b.device());
      TORCH_CHECK_VALUE(a.dim() > axes && a.size(0) == first.size(0) && a.sizes().slice(a.dim() - axes) == space, name,
                        ": expected one batch size and volumes of one shape, got ", first.sizes(), " and ", a.sizes());
      const at::Tensor out = at::empty(a.sizes(), a.options());
      inputs.push_back(a.contiguous());
      inputs.push_back(b.contiguous());
      results.push_back(out);
      if (out.numel() == 0) continue;
      const std::int64_t slabs = out.numel() / voxels;
      pairs.push_back({inputs[k].const_data_ptr(), inputs[k + 1].const_data_ptr(), out.mutable_data_ptr(),
                       static_cast<int>(out.element_size()), slabs, slabs / out.size(0)});
    }
  }
};

}  // namespace semiseg
