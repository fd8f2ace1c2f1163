// The torch side of stitch_windows.cu: memory, device and stream. The .cu files do not use torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../core/stitch_windows_arguments.h"
#include "stitch_windows.h"

namespace semiseg {
namespace {

void stitch_add(at::Tensor& total, const at::Tensor& given,
                const std::optional<at::Tensor>& weights, at::IntArrayRef starts,
                at::IntArrayRef counts, std::int64_t first, c10::string_view name) {
  const c10::DeviceGuard guard(total.device());
  const StitchArguments arguments(total, weights, patch_of(total, given), starts, counts);
  check_logits(total, given, arguments, first);
  const Activation activation = activation_of(name);
  if (given.numel() == 0) return;
  const at::Tensor logits = given.scalar_type() == at::kDouble ? given.to(at::kFloat) : given;
  const WindowRun run(arguments.grid, first, logits.size(0));
  const auto launch_on = [&](auto* from) {
    C10_CUDA_CHECK(launch_stitch_add(total.mutable_data_ptr<float>(), from, arguments.weight_data(),
                                     arguments.classes, strides_of(logits), arguments.grid, run,
                                     activation, c10::cuda::getCurrentCUDAStream()));
  };
  switch (logits.scalar_type()) {
    case at::kFloat:
      return launch_on(logits.const_data_ptr<float>());
    case at::kHalf:
      return launch_on(static_cast<const Float16*>(logits.const_data_ptr()));
    case at::kBFloat16:
      return launch_on(static_cast<const BFloat16*>(logits.const_data_ptr()));
    default:
      TORCH_CHECK_TYPE(false, "stitch_add: no logits of ", logits.scalar_type());
  }
}

void stitch_divide(at::Tensor& total, const std::optional<at::Tensor>& weights,
                   at::IntArrayRef patch, at::IntArrayRef starts, at::IntArrayRef counts) {
  const c10::DeviceGuard guard(total.device());
  const StitchArguments arguments(total, weights, patch, starts, counts);
  C10_CUDA_CHECK(launch_stitch_divide(total.mutable_data_ptr<float>(), arguments.weight_data(),
                                      arguments.classes, arguments.grid,
                                      c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) {
  m.impl("stitch_add", stitch_add);
  m.impl("stitch_divide", stitch_divide);
}

}  // namespace semiseg
