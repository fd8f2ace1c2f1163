#pragma once

// Checks and unpacks the operators' arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "arguments.h"
#include "stitch_windows.h"

namespace semiseg {

// The running total, contiguous float32 `(C, *S)`, the grid of windows `(*P)` over it, and the
// windows' weights.
struct StitchArguments {
  WindowGrid grid;
  std::int64_t classes;
  at::Tensor weights;  // contiguous float32 (*P), or undefined

  StitchArguments(const at::Tensor& total, const std::optional<at::Tensor>& given,
                  at::IntArrayRef patch, at::IntArrayRef starts, at::IntArrayRef counts) {
    TORCH_CHECK_TYPE(total.scalar_type() == at::kFloat, "stitch: expected a float32 total, got ",
                     total.scalar_type());
    TORCH_CHECK_VALUE((total.dim() == 3 || total.dim() == 4) && total.is_contiguous(),
                      "stitch: expected a contiguous total (C, X, Y) or (C, X, Y, Z), got ",
                      total.sizes());
    const at::IntArrayRef shape = total.sizes().slice(1);
    TORCH_CHECK_VALUE(patch.size() == shape.size() && counts.size() == shape.size(),
                      "stitch: windows ", patch, " and numbers of starts ", counts,
                      " do not fit a volume ", shape);
    TORCH_CHECK_VALUE(starts.size() <= WindowGrid::kMaxStarts, "stitch: expected at most ",
                      int{WindowGrid::kMaxStarts}, " starts over all axes, got ", starts.size());
    std::int64_t given_starts = 0;
    checked_voxels("stitch", shape);
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      TORCH_CHECK_VALUE(counts[axis] > 0 &&
                            counts[axis] <= static_cast<std::int64_t>(starts.size()) - given_starts,
                        "stitch: numbers of starts ", counts, " do not fit ", starts.size(),
                        " starts");
      const at::IntArrayRef along = starts.slice(given_starts, counts[axis]);
      TORCH_CHECK_VALUE(patch[axis] > 0 && along.front() >= 0 &&
                            along.back() <= shape[axis] - patch[axis] &&
                            std::is_sorted(along.begin(), along.end()),
                        "stitch: starts ", along, " are not ascending or leave an axis of ",
                        shape[axis], " voxels with windows of ", patch[axis]);
      given_starts += counts[axis];
    }
    TORCH_CHECK_VALUE(given_starts == static_cast<std::int64_t>(starts.size()),
                      "stitch: numbers of starts ", counts, " do not fit ", starts.size(),
                      " starts");

    classes = total.size(0);
    const auto in_three = [&](at::IntArrayRef values, int (&out)[3]) {
      out[0] = static_cast<int>(values.front());
      out[1] = values.size() == 3 ? static_cast<int>(values[1]) : 1;
      out[2] = static_cast<int>(values.back());
    };
    in_three(shape, grid.size);
    in_three(patch, grid.patch);
    in_three(counts, grid.counts);
    auto* next = std::copy_n(starts.begin(), counts.front(), grid.starts);
    if (shape.size() == 2) *next++ = 0;
    std::copy(starts.begin() + counts.front(), starts.end(), next);

    if (given) {
      TORCH_CHECK_VALUE(given->scalar_type() == at::kFloat && given->sizes() == patch &&
                            given->is_contiguous() && given->device() == total.device(),
                        "stitch: expected contiguous float32 weights ", patch, " on ",
                        total.device(), ", got ", given->scalar_type(), " ", given->sizes(), " on ",
                        given->device());
      weights = *given;
    }
  }

  const float* weight_data() const {
    return weights.defined() ? weights.const_data_ptr<float>() : nullptr;
  }
};

inline LogitStrides strides_of(const at::Tensor& logits) {
  const bool volume = logits.dim() == 5;
  return {logits.stride(0), logits.stride(1), logits.stride(2), volume ? logits.stride(3) : 0,
          logits.stride(-1)};
}

// Checks the logits of windows `first`, first + 1, ... against the total.
inline void check_logits(const at::Tensor& total, const at::Tensor& logits,
                         const StitchArguments& arguments, std::int64_t first) {
  TORCH_CHECK_TYPE(at::isFloatingType(logits.scalar_type()),
                   "stitch_add: expected floating-point logits, got ", logits.scalar_type());
  TORCH_CHECK_VALUE(logits.device() == total.device() && logits.size(1) == arguments.classes,
                    "stitch_add: logits ", logits.sizes(), " on ", logits.device(),
                    " do not fit a total ", total.sizes(), " on ", total.device());
  TORCH_CHECK_VALUE(first >= 0 && logits.size(0) <= arguments.grid.windows() - first,
                    "stitch_add: ", logits.size(0), " windows from ", first,
                    " do not fit a grid of ", arguments.grid.windows());
}

// The window's extents. Checks that the logits have one axis more than the total, for the windows.
inline at::IntArrayRef patch_of(const at::Tensor& total, const at::Tensor& logits) {
  TORCH_CHECK_VALUE(logits.dim() == total.dim() + 1 && logits.dim() >= 4 && logits.dim() <= 5,
                    "stitch_add: expected logits (N, C, *P) and a total (C, *S), got ",
                    logits.sizes(), " and ", total.sizes());
  return logits.sizes().slice(2);
}

inline Activation activation_of(c10::string_view name) {
  if (name == "softmax") return Activation::kSoftmax;
  if (name == "sigmoid") return Activation::kSigmoid;
  TORCH_CHECK_VALUE(name == "none", "stitch_add: activation '", name,
                    "' is none of softmax, sigmoid, none");
  return Activation::kNone;
}

}  // namespace semiseg
