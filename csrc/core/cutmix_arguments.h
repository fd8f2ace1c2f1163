#pragma once

// Checks and unpacks the operators' arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include <vector>

#include "arguments.h"
#include "cutmix.h"

namespace semiseg {

// The pairs to splice and their results; `a` and `b` alternate in `given`: image, image, label,
// label.
struct SpliceArguments {
  std::vector<at::Tensor> inputs, results;  // contiguous
  std::vector<SplicePair> pairs;
  at::Tensor box;  // contiguous, on the pairs' device
  SpliceSize size;
  SpliceBoxes boxes;

  SpliceArguments(const char* name, at::ArrayRef<at::Tensor> given, const at::Tensor& corners) {
    TORCH_CHECK_TYPE(corners.scalar_type() == at::kLong, name, ": expected an int64 box, got ",
                     corners.scalar_type());
    const bool one_for_all = corners.dim() == 2;
    const std::int64_t axes = corners.dim() == 0 ? 0 : corners.size(-1);
    TORCH_CHECK_VALUE(
        (one_for_all || corners.dim() == 3) && corners.size(-2) == 2 && axes >= 1 && axes <= 3,
        name, ": expected a box (2, D) or (B, 2, D) of 1, 2 or 3 axes, got ", corners.sizes());
    const at::Tensor& first = given.front();
    for (std::size_t k = 0; k < given.size(); k += 2) {
      const at::Tensor &a = given[k], &b = given[k + 1];
      TORCH_CHECK_VALUE(a.sizes() == b.sizes(), name, ": expected a pair of one shape, got ",
                        a.sizes(), " and ", b.sizes());
      TORCH_CHECK_TYPE(a.scalar_type() == b.scalar_type(), name,
                       ": expected a pair of one dtype, got ", a.scalar_type(), " and ",
                       b.scalar_type());
      TORCH_CHECK_VALUE(
          a.dim() > axes && a.size(0) == first.size(0) &&
              a.sizes().slice(a.dim() - axes) == first.sizes().slice(first.dim() - axes),
          name, ": expected (B, ..., *S) with ", axes, " axes S, the same B and S for all, got ",
          first.sizes(), " and ", a.sizes());
    }
    TORCH_CHECK_VALUE(one_for_all || corners.size(0) == first.size(0), name,
                      ": expected one box or ", first.size(0), ", got ", corners.size(0));
    for (const at::Tensor& tensor : given)
      TORCH_CHECK_VALUE(tensor.device() == first.device() &&
                            (corners.is_cpu() || corners.device() == first.device()),
                        name, ": expected one device, got ", first.device(), ", ", tensor.device(),
                        " and a box on ", corners.device());

    box = corners.to(first.device(), /*non_blocking=*/true).contiguous();
    boxes = {box.const_data_ptr<std::int64_t>(), static_cast<int>(axes), one_for_all};

    int extents[] = {1, 1, 1};
    const std::int64_t voxels = checked_voxels(name, first.sizes().slice(first.dim() - axes));
    for (std::int64_t axis = 0; voxels > 0 && axis < axes; ++axis)
      extents[volume_axis(static_cast<int>(axis), static_cast<int>(axes))] =
          static_cast<int>(first.size(axis - axes));
    size = {extents[0], extents[1], extents[2]};

    for (std::size_t k = 0; k < given.size(); k += 2) {
      const at::Tensor &a = given[k], &b = given[k + 1];
      const at::Tensor out = at::empty(a.sizes(), a.options());
      inputs.push_back(a.contiguous());
      inputs.push_back(b.contiguous());
      results.push_back(out);
      if (out.numel() == 0) continue;
      const std::int64_t slabs = out.numel() / voxels;
      pairs.push_back({inputs[k].const_data_ptr(), inputs[k + 1].const_data_ptr(),
                       out.mutable_data_ptr(), static_cast<int>(out.element_size()), slabs,
                       slabs / out.size(0)});
    }
  }
};

}  // namespace semiseg
