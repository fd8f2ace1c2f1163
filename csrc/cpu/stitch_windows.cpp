// stitch_add and stitch_divide on the CPU. A task is a few rows of the volume. A row visits the
// windows that cover it. All loops run along z, in the first-level cache.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../core/stitch_windows_arguments.h"
#include "clones.h"
#include "parallel.h"

namespace semiseg {
namespace {

constexpr int kRows = 32;  // rows of a task

// Rows of the C classes of one window, n voxels each, `stride` apart.
struct Rows {
  const float* first;
  std::ptrdiff_t stride;

  const float* operator[](std::int64_t c) const { return first + c * stride; }
};

SEMISEG_AVX512_TOO void add_plain(float* __restrict sum, const float* __restrict value,
                                  const float* __restrict weight, int n) {
  for (int i = 0; i < n; ++i) sum[i] += weight[i] * value[i];
}

SEMISEG_AVX512_TOO void add_sigmoid(float* __restrict sum, const float* __restrict logit,
                                    const float* __restrict weight, int n) {
  for (int i = 0; i < n; ++i) sum[i] += weight[i] * sigmoid(logit[i]);
}

SEMISEG_AVX512_TOO void add_softmax_of_two(float* __restrict sum_0, float* __restrict sum_1,
                                           const float* __restrict logit_0,
                                           const float* __restrict logit_1,
                                           const float* __restrict weight, int n) {
  for (int i = 0; i < n; ++i) {
    float value[2] = {logit_0[i], logit_1[i]};
    softmax(value);
    sum_0[i] += weight[i] * value[0];
    sum_1[i] += weight[i] * value[1];
  }
}

// The steps of a softmax over any number of classes: `high` is the largest logit, `share` the
// weight divided by the sum.
SEMISEG_AVX512_TOO void raise(float* __restrict high, const float* __restrict logit, int n) {
  for (int i = 0; i < n; ++i) high[i] = logit[i] > high[i] ? logit[i] : high[i];
}

SEMISEG_AVX512_TOO void exponentiate(const float* __restrict logit, const float* __restrict high,
                                     float* __restrict out, float* __restrict sum, int n) {
  for (int i = 0; i < n; ++i) sum[i] += out[i] = exp_of_negative(logit[i] - high[i]);
}

SEMISEG_AVX512_TOO void divide(const float* __restrict numerator, float* __restrict denominator,
                               int n) {
  for (int i = 0; i < n; ++i) denominator[i] = numerator[i] / denominator[i];
}

// Separates two interleaved classes, as channels-last networks write them. The index is no int,
// because an int times two may overflow, and that would keep the compiler from vectorising.
template <typename T>
SEMISEG_AVX512_TOO void unzip(const T* __restrict in, float* __restrict out_0,
                              float* __restrict out_1, int n) {
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    out_0[i] = to_float(in[2 * i]);
    out_1[i] = to_float(in[2 * i + 1]);
  }
}

template <typename T>
SEMISEG_AVX512_TOO void convert(const T* __restrict in, float* __restrict out, int n) {
  for (int i = 0; i < n; ++i) out[i] = to_float(in[i]);
}

// One row of a window as float32 rows, one for each class: in place if possible, otherwise copied
// to `scratch`.
template <typename T>
Rows rows_of(const T* in, const LogitStrides& strides, std::int64_t classes, int n,
             float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    if (strides.z == 1 || n == 1) return {in, strides.channel};
  }
  if (strides.z == 1) {
    for (std::int64_t c = 0; c < classes; ++c)
      convert(in + c * strides.channel, scratch + c * n, n);
  } else if (classes == 2 && strides.channel == 1 && strides.z == 2) {
    unzip(in, scratch, scratch + n, n);
  } else {
    for (int i = 0; i < n; ++i)
      for (std::int64_t c = 0; c < classes; ++c)
        scratch[c * n + i] = to_float(in[i * strides.z + c * strides.channel]);
  }
  return {scratch, n};
}

// Adds weight times probability to `sums`, whose classes lie `voxels` apart. `scratch` has room for
// C + 2 rows.
void add_row(float* sums, std::int64_t voxels, const Rows& logits, const float* weight,
             std::int64_t classes, int n, Activation activation, float* scratch) {
  if (activation == Activation::kNone) {
    for (std::int64_t c = 0; c < classes; ++c) add_plain(sums + c * voxels, logits[c], weight, n);
  } else if (activation == Activation::kSigmoid) {
    for (std::int64_t c = 0; c < classes; ++c) add_sigmoid(sums + c * voxels, logits[c], weight, n);
  } else if (classes == 2) {
    add_softmax_of_two(sums, sums + voxels, logits[0], logits[1], weight, n);
  } else {
    float *high = scratch, *share = scratch + n, *values = scratch + 2 * n;
    std::copy_n(logits[0], n, high);
    for (std::int64_t c = 1; c < classes; ++c) raise(high, logits[c], n);
    std::fill_n(share, n, 0.f);
    for (std::int64_t c = 0; c < classes; ++c)
      exponentiate(logits[c], high, values + c * n, share, n);
    divide(weight, share, n);
    for (std::int64_t c = 0; c < classes; ++c)
      add_plain(sums + c * voxels, values + c * n, share, n);
  }
}

template <typename T>
void add(float* total, const T* logits, const LogitStrides& strides, const float* weights,
         std::int64_t classes, const WindowGrid& grid, const WindowRun& run,
         Activation activation) {
  const int n = grid.patch[2];
  const std::int64_t rows = std::int64_t{run.extent[0]} * run.extent[1];
  const std::vector<float> ones(weights ? 0 : n, 1.f);
  run_tasks(at::divup(rows, kRows), [&] {
    return [&, copied = std::vector<float>(classes * n),
            scratch = std::vector<float>((classes + 2) * n)](std::int64_t task) mutable {
      for (std::int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row) {
        const int x = run.origin[0] + static_cast<int>(row / run.extent[1]);
        const int y = run.origin[1] + static_cast<int>(row % run.extent[1]);
        visit_column(grid, run, x, y, [&](std::int64_t window, int px, int py, int z) {
          const T* at = logits + window * strides.window + px * strides.x + py * strides.y;
          const float* weight =
              weights ? weights + (std::int64_t{px} * grid.patch[1] + py) * n : ones.data();
          add_row(total + grid.voxel(x, y, z), grid.voxels(),
                  rows_of(at, strides, classes, n, copied.data()), weight, classes, n, activation,
                  scratch.data());
        });
      }
    };
  });
}

void stitch_add(at::Tensor& total, const at::Tensor& logits,
                const std::optional<at::Tensor>& weights, at::IntArrayRef starts,
                at::IntArrayRef counts, std::int64_t first, c10::string_view name) {
  const StitchArguments arguments(total, weights, patch_of(total, logits), starts, counts);
  check_logits(total, logits, arguments, first);
  const Activation activation = activation_of(name);
  if (logits.numel() == 0) return;
  const WindowRun run(arguments.grid, first, logits.size(0));
  const auto run_on = [&](auto* from) {
    add(total.mutable_data_ptr<float>(), from, strides_of(logits), arguments.weight_data(),
        arguments.classes, arguments.grid, run, activation);
  };
  switch (logits.scalar_type()) {
    case at::kFloat:
      return run_on(logits.const_data_ptr<float>());
    case at::kDouble:
      return run_on(logits.const_data_ptr<double>());
    case at::kHalf:
      return run_on(static_cast<const Float16*>(logits.const_data_ptr()));
    case at::kBFloat16:
      return run_on(static_cast<const BFloat16*>(logits.const_data_ptr()));
    default:
      TORCH_CHECK_TYPE(false, "stitch_add: no logits of ", logits.scalar_type());
  }
}

SEMISEG_AVX512_TOO void divide_row(float* __restrict sum, const float* __restrict cover, int n) {
  for (int i = 0; i < n; ++i) sum[i] /= cover[i];
}

void stitch_divide(at::Tensor& given, const std::optional<at::Tensor>& weights,
                   at::IntArrayRef patch, at::IntArrayRef starts, at::IntArrayRef counts) {
  const StitchArguments arguments(given, weights, patch, starts, counts);
  const WindowGrid& grid = arguments.grid;
  const WindowRun all(grid, 0, grid.windows());
  float* total = given.mutable_data_ptr<float>();
  const std::int64_t rows = std::int64_t{grid.size[0]} * grid.size[1];
  const std::vector<float> ones(grid.patch[2], 1.f);
  std::vector<float> number(grid.size[2]);  // windows that cover each place along z
  for (int z = 0; z < grid.size[2]; ++z) number[z] = static_cast<float>(grid.covering(2, z));
  run_tasks(at::divup(rows, kRows), [&] {
    return [&, cover = std::vector<float>(grid.size[2])](std::int64_t task) mutable {
      for (std::int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row) {
        const int x = static_cast<int>(row / grid.size[1]);
        const int y = static_cast<int>(row % grid.size[1]);
        if (const float* weight = arguments.weight_data()) {
          std::fill(cover.begin(), cover.end(), 0.f);
          visit_column(grid, all, x, y, [&](std::int64_t, int px, int py, int z) {
            add_plain(&cover[z], ones.data(),
                      weight + (std::int64_t{px} * grid.patch[1] + py) * grid.patch[2],
                      grid.patch[2]);
          });
        } else {
          const auto columns = static_cast<float>(grid.covering(0, x) * grid.covering(1, y));
          for (int z = 0; z < grid.size[2]; ++z) cover[z] = columns * number[z];
        }
        for (std::int64_t c = 0; c < arguments.classes; ++c)
          divide_row(total + c * grid.voxels() + grid.voxel(x, y, 0), cover.data(), grid.size[2]);
      }
    };
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) {
  m.impl("stitch_add", stitch_add);
  m.impl("stitch_divide", stitch_divide);
}

}  // namespace semiseg
