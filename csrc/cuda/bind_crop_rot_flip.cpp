// The torch side of crop_rot_flip.cu: memory, device and stream. The .cu files do not use torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../core/crop_rot_flip_arguments.h"
#include "crop_rot_flip.h"

namespace semiseg {
namespace {

std::tuple<at::Tensor, at::Tensor> crop_rot_flip(at::TensorList images, at::TensorList labels,
                                                 at::IntArrayRef starts, at::IntArrayRef size,
                                                 at::IntArrayRef rot, at::IntArrayRef flip) {
  TORCH_CHECK_VALUE(!images.empty(), "crop_rot_flip: expected at least one image");
  const c10::DeviceGuard guard(images[0].device());
  const CropRotFlipArguments given(images, labels, starts, size, rot, flip);
  if (given.image.numel() == 0) return {given.image, given.label};
  std::vector<CropSample> samples;
  for (std::size_t k = 0; k < given.images.size(); ++k) {
    const void* label = k < given.labels.size() ? given.labels[k].const_data_ptr() : nullptr;
    samples.push_back({given.images[k].const_data_ptr(), label, given.views[k]});
  }
  const auto result = [](const at::Tensor& out) {
    return CropResult{out.mutable_data_ptr(), static_cast<int>(out.element_size())};
  };
  C10_CUDA_CHECK(launch_crop_rot_flip(samples.data(), static_cast<std::int64_t>(samples.size()),
                                      static_cast<std::int64_t>(given.labels.size()),
                                      result(given.image), result(given.label), given.x, given.y,
                                      given.z, c10::cuda::getCurrentCUDAStream()));
  return {given.image, given.label};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) { m.impl("crop_rot_flip", crop_rot_flip); }

}  // namespace semiseg
