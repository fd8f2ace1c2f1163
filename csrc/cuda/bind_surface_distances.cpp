// The torch side of surface_distances.cu: memory, device and stream. The .cu files do not use
// torch.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../core/surface_distances_arguments.h"
#include "surface_distances.h"

namespace semiseg::surfaces {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> surface_distances(const at::Tensor& given_pred,
                                                                 const at::Tensor& given_target,
                                                                 at::ArrayRef<double> spacing) {
  const c10::DeviceGuard guard(given_pred.device());
  const Arguments arguments(given_pred, given_target, spacing);
  const Grid& grid = arguments.grid;
  const auto options = arguments.pred.options();
  const auto longs = [&](std::int64_t count) {
    return at::empty({count}, options.dtype(at::kLong));
  };
  const at::Tensor totals = at::zeros({5}, options.dtype(at::kLong));
  if (arguments.pred.numel() == 0) {
    const at::Tensor none = at::empty({0}, options.dtype(at::kDouble));
    return {none, at::empty_like(none), totals.narrow(0, 0, 3)};
  }

  const Grid tiles = grid.tiled();
  const std::int64_t words = grid.size();
  const at::Tensor bits = longs(2 * words);
  const at::Tensor rows = longs(2 * words);
  const at::Tensor tile_rows = longs(2 * tiles.size());
  const at::Tensor block_rows = longs(2 * tiles.tiled().size());
  const at::Tensor sizes = at::empty({2 * words}, options.dtype(at::kInt));
  const auto as_words = [](const at::Tensor& tensor) {
    return reinterpret_cast<Word*>(tensor.mutable_data_ptr<std::int64_t>());
  };
  const DeviceMemory memory{
      as_words(bits),
      as_words(rows),
      as_words(tile_rows),
      as_words(block_rows),
      sizes.mutable_data_ptr<int>(),
      reinterpret_cast<unsigned long long*>(totals.mutable_data_ptr<std::int64_t>())};
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_mark(arguments.pred.const_data_ptr<std::uint8_t>(),
                             arguments.target.const_data_ptr<std::uint8_t>(), memory, grid,
                             arguments.z, stream));
  at::Tensor ends = bits;  // the bits are no longer needed
  at::cumsum_out(ends, sizes, 0);

  const at::Tensor counts = totals.cpu();  // the host waits: it must know how much to allocate
  const auto* count = counts.const_data_ptr<std::int64_t>();
  const std::int64_t from_pred = count[3], from_target = count[4];
  const at::Tensor voxels = at::empty({from_pred + from_target}, options.dtype(at::kInt));
  at::Tensor there = at::empty({from_pred}, options.dtype(at::kDouble));
  at::Tensor back = at::empty({from_target}, options.dtype(at::kDouble));
  const auto measure = [&](const auto& step) {
    C10_CUDA_CHECK(launch_measure(memory, ends.const_data_ptr<std::int64_t>(),
                                  voxels.mutable_data_ptr<int>(), there.mutable_data_ptr<double>(),
                                  back.mutable_data_ptr<double>(), from_pred, from_target, grid,
                                  arguments.z, step, stream));
  };
  arguments.equal ? measure(arguments.whole) : measure(arguments.real);
  return {there, back, totals.narrow(0, 0, 3)};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CUDA, m) { m.impl("surface_distances", surface_distances); }

}  // namespace semiseg::surfaces
