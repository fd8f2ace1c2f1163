// crop_rot_flip on the CPU. A task copies a few neighbouring planes of one volume, in their order
// in memory, to their places in the result.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <vector>

#include "../core/crop_rot_flip_arguments.h"
#include "parallel.h"

namespace semiseg {
namespace {

constexpr int kPlanes = 8;   // planes of the volume in a task
constexpr int kSquare = 16;  // voxels each way that are transposed together, for the cache

struct Sample {
  const void* volume;
  void* out;
  int bytes;  // of one element
  const CropView* view;
};

// Writes a row of the result that runs along the volume's last axis.
template <typename Element>
void copy_row(const Element* volume, Element* out, const CropView& view, int i, int j, int n) {
  const bool outside = !view.holds(0, i) || !view.holds(1, j);
  const int begin = outside ? n : view.begin[2], end = outside ? n : view.end[2];
  std::memset(out, 0, begin * sizeof(Element));
  if (begin < end) {
    const Element* from = volume + view.row(i, j) + begin * view.step[2];
    if (view.step[2] == 1) {
      std::memcpy(out + begin, from, (end - begin) * sizeof(Element));
    } else {
      for (int k = 0; k < end - begin; ++k) out[begin + k] = from[-k];
    }
  }
  std::memset(out + end, 0, (n - end) * sizeof(Element));
}

// Writes rows i_begin .. i_end - 1 of an image that is turned by 90 or 270 degrees: the rows run
// along the image's first axis.
template <typename Element>
void transpose_rows(const Element* image, Element* out, const CropView& view, int i_begin,
                    int i_end, int n) {
  std::memset(out + std::int64_t{i_begin} * n, 0,
              std::size_t(i_end - i_begin) * n * sizeof(Element));
  const int top = std::max(i_begin, view.begin[0]), bottom = std::min(i_end, view.end[0]);
  for (int k = view.begin[2]; k < view.end[2]; k += kSquare) {
    const int k_end = std::min(k + kSquare, view.end[2]);
    for (int i = top; i < bottom; ++i)
      for (int at = k; at < k_end; ++at)
        out[std::int64_t{i} * n + at] = image[view.row(i, 0) + at * view.step[2]];
  }
}

template <typename Element>
void run(const Sample& sample, int x, int y, int z, std::int64_t task) {
  const CropView& view = *sample.view;
  const auto* volume = static_cast<const Element*>(sample.volume);
  auto* out = static_cast<Element*>(sample.out);
  const auto range = [task](int n, int each) {
    const auto first = [=](std::int64_t at) {
      return static_cast<int>(std::min<std::int64_t>(at * each, n));
    };
    return std::pair(first(task), first(task + 1));
  };
  if (std::abs(view.step[2]) != 1) {
    const auto [begin, end] = range(x, kSquare);
    transpose_rows(volume, out, view, begin, end, z);
    return;
  }
  const auto copy = [&](int i, int j) {
    copy_row(volume, out + (std::int64_t{i} * y + j) * z, view, i, j, z);
  };
  if (std::abs(view.step[1]) <= std::abs(view.step[0])) {
    const auto [begin, end] = range(x, kPlanes);
    for (int i = begin; i < end; ++i)
      for (int j = 0; j < y; ++j) copy(i, j);
  } else {
    const auto [begin, end] = range(y, kPlanes);
    for (int j = begin; j < end; ++j)
      for (int i = 0; i < x; ++i) copy(i, j);
  }
}

std::tuple<at::Tensor, at::Tensor> crop_rot_flip(at::TensorList images, at::TensorList labels,
                                                 at::IntArrayRef starts, at::IntArrayRef size,
                                                 at::IntArrayRef rot, at::IntArrayRef flip) {
  const CropRotFlipArguments given(images, labels, starts, size, rot, flip);
  const int x = given.x, y = given.y, z = given.z;
  if (given.image.numel() == 0) return {given.image, given.label};
  std::vector<Sample> samples;
  const auto add = [&](const std::vector<at::Tensor>& volumes, const at::Tensor& result) {
    auto* out = static_cast<char*>(result.mutable_data_ptr());
    for (std::size_t k = 0; k < volumes.size(); ++k) {
      const auto bytes = static_cast<int>(result.element_size());
      samples.push_back(
          {volumes[k].const_data_ptr(), out + k * x * y * z * bytes, bytes, &given.views[k]});
    }
  };
  add(given.images, given.image);
  add(given.labels, given.label);
  // Tasks of a sample; enough for both ways of `run` to share out planes.
  const std::int64_t tasks = at::divup(std::int64_t{std::max(x, y)}, kPlanes);
  run_tasks(static_cast<std::int64_t>(samples.size()) * tasks, [&] {
    return [&](std::int64_t task) {
      const Sample& sample = samples[task / tasks];
      with_element(sample.bytes,
                   [&](auto element) { run<decltype(element)>(sample, x, y, z, task % tasks); });
    };
  });
  return {given.image, given.label};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) { m.impl("crop_rot_flip", crop_rot_flip); }

}  // namespace semiseg
