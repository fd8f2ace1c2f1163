// The operators' schemas. Kernels are registered in their own files: csrc/cpu for CPU, csrc/cuda
// for CUDA. Fake kernels for torch.compile and further checks of arguments are in utils/ops, one
// module for each operator.

#include <torch/library.h>

TORCH_LIBRARY(semiseg, m) {
  const auto def = [&](const char* schema) { m.def(schema, {at::Tag::pt2_compliant_tag}); };
  def("signed_distance(Tensor mask, float[] spacing, bool normalized) -> Tensor");
  def("splice(Tensor a, Tensor b, Tensor box) -> Tensor");
  def("cutmix(Tensor image_a, Tensor image_b, Tensor label_a, Tensor label_b, Tensor box) -> "
      "(Tensor, Tensor)");
  def("stitch_add(Tensor(a!) total, Tensor logits, Tensor? weights, int[] starts, int[] counts, "
      "int first, str activation) -> ()");
  def("stitch_divide(Tensor(a!) total, Tensor? weights, int[] patch, int[] starts, int[] counts) "
      "-> ()");
  def("largest_component(Tensor labels, int num_classes, int connectivity) -> Tensor");
  def("surface_distances(Tensor pred, Tensor target, float[] spacing) -> (Tensor, Tensor, Tensor)");
  def("crop_rot_flip(Tensor[] images, Tensor[] labels, int[] starts, int[] size, int[] rot, "
      "int[] flip) -> (Tensor, Tensor)");
}
