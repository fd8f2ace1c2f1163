// The operators' schemas. Kernels register themselves where they stand: csrc/cpu for CPU, csrc/cuda for CUDA.
// Fake kernels, for torch.compile, and argument checks stand in utils/ops, one module an operator.

#include <torch/library.h>

TORCH_LIBRARY(semiseg, m) {
  m.def("signed_distance(Tensor mask, float[] spacing, bool normalized) -> Tensor", {at::Tag::pt2_compliant_tag});
}
