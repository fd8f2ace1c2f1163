#pragma once

// Checks and unpacks the operator's arguments for both devices. Includes torch, so no .cu file
// includes this file.

#include <ATen/ATen.h>

#include <vector>

#include "arguments.h"
#include "crop_rot_flip.h"

namespace semiseg {

struct CropRotFlipArguments {
  std::vector<at::Tensor> images, labels;  // contiguous
  std::vector<CropView> views;             // one for each image
  at::Tensor image, label;                 // the results
  int x = 1, y = 1, z = 1;                 // extents of a result

  CropRotFlipArguments(at::TensorList given_images, at::TensorList given_labels,
                       at::IntArrayRef starts, at::IntArrayRef size, at::IntArrayRef rot,
                       at::IntArrayRef flip) {
    TORCH_CHECK_VALUE(!given_images.empty(), "crop_rot_flip: expected at least one image");
    const auto batch = static_cast<std::int64_t>(given_images.size());
    const auto labelled = static_cast<std::int64_t>(given_labels.size());
    const auto axes = static_cast<int>(size.size());
    TORCH_CHECK_VALUE(axes == 2 || axes == 3, "crop_rot_flip: expected a size of 2 or 3 axes, got ",
                      size);
    TORCH_CHECK_VALUE(labelled <= batch, "crop_rot_flip: expected at most one label an image, got ",
                      labelled, " for ", batch);
    const auto counted = [&](at::IntArrayRef numbers, std::int64_t each, const char* name) {
      TORCH_CHECK_VALUE(static_cast<std::int64_t>(numbers.size()) == batch * each,
                        "crop_rot_flip: expected ", batch * each, " numbers in ", name, ", got ",
                        numbers.size());
    };
    counted(starts, axes, "starts");
    counted(rot, 1, "rot");
    counted(flip, 1, "flip");

    int extents[] = {1, 1, 1};
    const bool nothing = checked_voxels("crop_rot_flip", size) == 0;
    for (int axis = 0; !nothing && axis < axes; ++axis)
      extents[volume_axis(axis, axes)] = static_cast<int>(size[axis]);
    x = extents[0], y = extents[1], z = extents[2];

    for (std::int64_t k = 0; k < batch; ++k) {
      const at::Tensor& volume = given_images[k];
      TORCH_CHECK_VALUE(volume.dim() == axes, "crop_rot_flip: expected volumes of ", axes,
                        " axes, got ", volume.sizes());
      TORCH_CHECK_VALUE(rot[k] >= 0 && rot[k] < 4,
                        "crop_rot_flip: expected 0, 1, 2 or 3 quarter turns, got ", rot[k]);
      TORCH_CHECK_VALUE(flip[k] >= -1 && flip[k] < axes,
                        "crop_rot_flip: expected an axis to flip or -1, got ", flip[k]);
      images.push_back(alike(volume, given_images[0], given_images[0]));
      views.push_back(crop_view(axes, volume.sizes().data(), starts.data() + k * axes, size.data(),
                                static_cast<int>(rot[k]), static_cast<int>(flip[k])));
      if (k >= labelled) continue;
      TORCH_CHECK_VALUE(given_labels[k].sizes() == volume.sizes(), "crop_rot_flip: a label ",
                        given_labels[k].sizes(), " does not fit its image ", volume.sizes());
      labels.push_back(alike(given_labels[k], given_labels[0], given_images[0]));
    }
    image = result(batch, size, images[0].options());
    label = result(labelled, size,
                   labelled > 0 ? labels[0].options() : images[0].options().dtype(at::kByte));
  }

 private:
  static at::Tensor alike(const at::Tensor& volume, const at::Tensor& in_type,
                          const at::Tensor& in_device) {
    TORCH_CHECK_TYPE(volume.scalar_type() == in_type.scalar_type(),
                     "crop_rot_flip: expected one type, got ", in_type.scalar_type(), " and ",
                     volume.scalar_type());
    TORCH_CHECK_VALUE(volume.device() == in_device.device(),
                      "crop_rot_flip: expected volumes on one device, got ", in_device.device(),
                      " and ", volume.device());
    return volume.contiguous();
  }

  static at::Tensor result(std::int64_t count, at::IntArrayRef size,
                           const at::TensorOptions& options) {
    std::vector<std::int64_t> shape{count};
    shape.insert(shape.end(), size.begin(), size.end());
    return at::empty(shape, options);
  }
};

}  // namespace semiseg
