// The torch side of largest_component.cu: memory, device and stream. The .cu files do not use
// torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../core/largest_component_arguments.h"
#include "largest_component.h"

namespace semiseg::components {
namespace {

at::Tensor largest_component(const at::Tensor& given, std::int64_t num_classes,
                             std::int64_t connectivity) {
  const c10::DeviceGuard guard(given.device());
  const Arguments arguments(given, num_classes, connectivity);
  const auto& [labels, grid, classes] = arguments;
  at::Tensor out = at::empty(labels.sizes(), labels.options());
  if (labels.numel() == 0) return out;
  const auto bytes =
      static_cast<std::int64_t>(largest_component_scratch(labels.size(0), grid, classes));
  const at::Tensor scratch = at::empty({bytes}, labels.options().dtype(at::kByte));
  with_unsigned(
      labels.element_size(), [&, &labels = labels, &grid = grid, classes = classes](auto zero) {
        using T = decltype(zero);
        C10_CUDA_CHECK(launch_largest_component(static_cast<const T*>(labels.const_data_ptr()),
                                                static_cast<T*>(out.mutable_data_ptr()),
                                                scratch.mutable_data_ptr(), labels.size(0), grid,
                                                classes, c10::cuda::getCurrentCUDAStream()));
      });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) { m.impl("largest_component", largest_component); }

}  // namespace semiseg::components
