// The torch side of cutmix.cu: memory, device and stream. The .cu files do not use torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../core/cutmix_arguments.h"
#include "cutmix.h"

namespace semiseg {
namespace {

std::vector<at::Tensor> run(const char* name, at::ArrayRef<at::Tensor> tensors,
                            const at::Tensor& box) {
  const c10::DeviceGuard guard(tensors.front().device());
  const SpliceArguments given(name, tensors, box);
  C10_CUDA_CHECK(launch_splice(given.pairs.data(), static_cast<int>(given.pairs.size()), given.size,
                               given.boxes, c10::cuda::getCurrentCUDAStream()));
  return given.results;
}

at::Tensor splice(const at::Tensor& a, const at::Tensor& b, const at::Tensor& box) {
  return run("splice", {a, b}, box)[0];
}

std::tuple<at::Tensor, at::Tensor> cutmix(const at::Tensor& image_a, const at::Tensor& image_b,
                                          const at::Tensor& label_a, const at::Tensor& label_b,
                                          const at::Tensor& box) {
  const auto results = run("cutmix", {image_a, image_b, label_a, label_b}, box);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) {
  m.impl("splice", splice);
  m.impl("cutmix", cutmix);
}

}  // namespace semiseg
