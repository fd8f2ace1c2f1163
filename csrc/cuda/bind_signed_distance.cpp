// The torch side of signed_distance.cu: memory, device and stream. The .cu files do not use torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../core/signed_distance_arguments.h"
#include "signed_distance.h"

namespace semiseg {
namespace {

at::Tensor signed_distance(const at::Tensor& given, at::ArrayRef<double> steps, bool normalized) {
  const c10::DeviceGuard guard(given.device());
  const SignedDistanceArguments arguments(given, steps);
  const auto& [mask, size, spacing] = arguments;
  at::Tensor out = at::empty(mask.sizes(), mask.options().dtype(at::kFloat));
  if (mask.numel() == 0) return out;
  const auto bytes = static_cast<std::int64_t>(signed_distance_scratch(size));
  const at::Tensor scratch = at::empty({bytes}, mask.options());
  C10_CUDA_CHECK(launch_signed_distance(
      mask.const_data_ptr<std::uint8_t>(), out.mutable_data_ptr<float>(),
      scratch.mutable_data_ptr(), size, spacing, normalized, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) { m.impl("signed_distance", signed_distance); }

}  // namespace semiseg
