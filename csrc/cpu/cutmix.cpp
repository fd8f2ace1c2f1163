// splice and cutmix on the CPU: every byte of the results is written once, in stretches as long as
// possible.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../core/cutmix_arguments.h"
#include "parallel.h"

namespace semiseg {
namespace {

// Large compared with the cost of taking a task, small compared with a volume.
constexpr std::int64_t kTaskBytes = 1 << 18;

// Splices one x-plane of one pair; `plane` is the position of its first byte. Between two rows of
// the box, the end of one row and the beginning of the next are contiguous and are copied together.
void splice_plane(const SplicePair& pair, std::int64_t plane, int x, const SpliceSize& size,
                  const SpliceBox& box) {
  const char* a = static_cast<const char*>(pair.a) + plane;
  const char* b = static_cast<const char*>(pair.b) + plane;
  char* out = static_cast<char*>(pair.out) + plane;
  const std::size_t row = std::size_t(size.z) * pair.bytes;
  const std::size_t start = std::size_t(box.start[2]) * pair.bytes;
  const std::size_t stop = std::size_t(box.stop[2]) * pair.bytes;
  std::size_t done = 0;
  if (box.holds(0, x) && start < stop) {
    for (int y = box.start[1]; y < box.stop[1]; ++y) {
      const std::size_t enter = y * row + start, leave = y * row + stop;
      std::memcpy(out + done, a + done, enter - done);
      std::memcpy(out + enter, b + enter, leave - enter);
      done = leave;
    }
  }
  std::memcpy(out + done, a + done, size.y * row - done);
}

// All pairs in one parallel region.
void run(const SpliceArguments& given) {
  struct Work {
    SplicePair pair;
    std::int64_t plane;       // bytes of a plane
    std::int64_t planes;      // planes of all volumes
    std::int64_t share;       // planes of a task
    std::int64_t first_task;  // its number
  };
  std::vector<Work> works;
  std::int64_t tasks = 0;
  for (const SplicePair& pair : given.pairs) {
    const std::int64_t plane = std::int64_t{given.size.y} * given.size.z * pair.bytes;
    const std::int64_t planes = pair.slabs * given.size.x;
    const std::int64_t share = std::max<std::int64_t>(kTaskBytes / plane, 1);
    works.push_back({pair, plane, planes, share, tasks});
    tasks += (planes + share - 1) / share;
  }
  run_tasks(tasks, [&] {
    return [&](std::int64_t task) {
      const Work& work = task < works.back().first_task ? works.front() : works.back();
      const std::int64_t begin = (task - work.first_task) * work.share;
      const std::int64_t end = std::min(begin + work.share, work.planes);
      for (std::int64_t k = begin; k < end; ++k) {
        const SpliceBox box = given.boxes.box(k / given.size.x / work.pair.channels, given.size);
        splice_plane(work.pair, k * work.plane, static_cast<int>(k % given.size.x), given.size,
                     box);
      }
    };
  });
}

at::Tensor splice(const at::Tensor& a, const at::Tensor& b, const at::Tensor& box) {
  const SpliceArguments given("splice", {a, b}, box);
  run(given);
  return given.results[0];
}

std::tuple<at::Tensor, at::Tensor> cutmix(const at::Tensor& image_a, const at::Tensor& image_b,
                                          const at::Tensor& label_a, const at::Tensor& label_b,
                                          const at::Tensor& box) {
  const SpliceArguments given("cutmix", {image_a, image_b, label_a, label_b}, box);
  run(given);
  return {given.results[0], given.results[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) {
  m.impl("splice", splice);
  m.impl("cutmix", cutmix);
}

}  // namespace semiseg
