// surface_distances on the CPU. It packs both masks to bits, plane by plane. Within the box that
// holds both masks it marks the surfaces, then searches from each surface voxel. Threads share the
// planes.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <climits>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "../core/surface_distances_arguments.h"
#include "clones.h"
#include "parallel.h"

namespace semiseg::surfaces {
namespace {

// Bit i says whether voxel i is foreground. `count` is at most 64.
Word pack_word(const std::uint8_t* voxels, int count) {
  Word word = 0;
  int i = 0;
#ifdef __SSE2__
  for (; i + 16 <= count; i += 16) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(voxels + i));
    const int background = _mm_movemask_epi8(_mm_cmpeq_epi8(sixteen, _mm_setzero_si128()));
    word |= Word{~static_cast<unsigned>(background) & 0xffff} << i;
  }
#endif
  for (; i < count; ++i) word |= Word{voxels[i] != 0} << i;
  return word;
}

// The box around the foreground of both masks in a plane or a volume, and the number of voxels of
// each mask and of their intersection.
struct Extent {
  int x_begin = INT_MAX;
  int x_end = 0;
  int y_begin = INT_MAX;
  int y_end = 0;
  int word_begin = INT_MAX;
  int word_end = 0;
  std::int64_t pred = 0, target = 0, both = 0;

  Grid box(bool image) const {
    if (pred + target == 0) return {0, 0, 0, image};
    return {x_end - x_begin, y_end - y_begin, word_end - word_begin, image};
  }

  void join(const Extent& other) {
    x_begin = std::min(x_begin, other.x_begin);
    x_end = std::max(x_end, other.x_end);
    y_begin = std::min(y_begin, other.y_begin);
    y_end = std::max(y_end, other.y_end);
    word_begin = std::min(word_begin, other.word_begin);
    word_end = std::max(word_end, other.word_end);
    pred += other.pred;
    target += other.target;
    both += other.both;
  }
};

Extent joined(const std::vector<Extent>& planes) {
  Extent all;
  for (const Extent& plane : planes) all.join(plane);
  return all;
}

// Packs both masks of a plane, with z voxels a row.
SEMISEG_AVX2_TOO Extent pack_plane(const std::uint8_t* pred, const std::uint8_t* target,
                                   Word* pred_bits, Word* target_bits, const Grid& grid, int x,
                                   int z) {
  Extent seen;
  for (int y = 0; y < grid.y; ++y, pred += z, target += z) {
    for (int k = 0; k < grid.words; ++k) {
      const int first = k * kWordBits, count = std::min(kWordBits, z - first);
      const Word in_pred = *pred_bits++ = pack_word(pred + first, count);
      const Word in_target = *target_bits++ = pack_word(target + first, count);
      if ((in_pred | in_target) == 0) continue;
      seen.join({x, x + 1, y, y + 1, k, k + 1, count_bits(in_pred), count_bits(in_target),
                 count_bits(in_pred & in_target)});
    }
  }
  return seen;
}

// The surface of a mask within a box.
class BoxedSurface {
 public:
  BoxedSurface(const Word* mask, const Grid& grid, const Grid& box, std::array<int, 3> corner)
      : mask_(mask),
        grid_(grid),
        box_(box),
        tiles_(box.tiled()),
        blocks_(tiles_.tiled()),
        corner_(corner) {
    row_words_.reset(new Word[box_.size()]);
    tile_words_.reset(new Word[tiles_.size()]);
    block_words_.reset(new Word[blocks_.size()]);
    starts_.resize(box_.x + 1);
  }

  int tasks() const { return blocks_.x; }

  // Marks the surface in the planes of one row of blocks.
  SEMISEG_AVX2_TOO void mark(int task) {
    for (int i = task * kSide * kSide; i < std::min((task + 1) * kSide * kSide, box_.x); ++i) {
      std::int64_t voxels = 0;
      for (int j = 0; j < box_.y; ++j) {
        for (int k = 0; k < box_.words; ++k) {
          const Word word =
              surface_word(mask_, grid_, corner_[0] + i, corner_[1] + j, corner_[2] + k);
          row_words_[box_.row(i, j) + k] = word;
          if (word != 0) voxels += count_bits(word);
        }
      }
      starts_[i + 1] = voxels;
    }
    for (int i = task * kSide; i < std::min((task + 1) * kSide, tiles_.x); ++i)
      tile(row_words_, box_, tile_words_, i);
    tile(tile_words_, tiles_, block_words_, task);
  }

  // Call this after `mark` has run for all tasks.
  void count() { std::partial_sum(starts_.begin(), starts_.end(), starts_.begin()); }

  std::int64_t voxels() const { return starts_.back(); }

  // Writes the distances from this plane's surface voxels to another surface, in scan order.
  template <typename T>
  void measure(int i, const BoxedSurface& other, const SquaredSteps<T>& step,
               double* distances) const {
    const Surface surface{other.row_words_.get(), other.tile_words_.get(),
                          other.block_words_.get()};
    double* out = distances + starts_[i];
    for (int j = 0; j < box_.y; ++j)
      for (int k = 0; k < box_.words; ++k)
        for (Word word = row_words_[box_.row(i, j) + k]; word != 0; word &= word - 1)
          *out++ = surface_distance(
              nearest(surface, box_, step, i, j, k * kWordBits + zeros_below(word)), step);
  }

 private:
  using Words = std::unique_ptr<Word[]>;

  // Row i of the tiles of a grid.
  static void tile(const Words& rows, const Grid& grid, const Words& tiles, int i) {
    const Grid to = grid.tiled();
    for (int j = 0; j < to.y; ++j)
      for (int k = 0; k < to.words; ++k)
        tiles[to.row(i, j) + k] = tile_word(rows.get(), grid, i, j, k);
  }

  const Word* mask_;
  Grid grid_, box_, tiles_, blocks_;
  std::array<int, 3> corner_;
  Words row_words_, tile_words_, block_words_;
  std::vector<std::int64_t> starts_;  // surface voxels before each plane, in scan order
};

template <typename T>
void measure(const BoxedSurface& pred, const BoxedSurface& target, const SquaredSteps<T>& step,
             std::int64_t planes, double* there, double* back) {
  run_tasks(std::int64_t{2} * planes, [&] {
    return [&](std::int64_t task) {
      const int plane = static_cast<int>(task / 2);
      task % 2 == 0 ? pred.measure(plane, target, step, there)
                    : target.measure(plane, pred, step, back);
    };
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> surface_distances(const at::Tensor& given_pred,
                                                                 const at::Tensor& given_target,
                                                                 at::ArrayRef<double> spacing) {
  const Arguments arguments(given_pred, given_target, spacing);
  const Grid& grid = arguments.grid;
  const std::unique_ptr<Word[]> pred_bits(new Word[grid.size()]),
      target_bits(new Word[grid.size()]);
  const auto* pred_voxels = arguments.pred.const_data_ptr<std::uint8_t>();
  const auto* target_voxels = arguments.target.const_data_ptr<std::uint8_t>();
  std::vector<Extent> planes(grid.x);
  run_tasks(grid.x, [&] {
    return [&](std::int64_t x) {
      const std::int64_t voxel = x * grid.y * arguments.z, word = grid.row(static_cast<int>(x), 0);
      planes[x] = pack_plane(pred_voxels + voxel, target_voxels + voxel, &pred_bits[word],
                             &target_bits[word], grid, static_cast<int>(x), arguments.z);
    };
  });
  const Extent extent = joined(planes);

  const auto options = arguments.pred.options();
  at::Tensor voxels = at::empty({3}, options.dtype(at::kLong));
  const std::array<std::int64_t, 3> counts{extent.pred, extent.target, extent.both};
  std::copy(counts.begin(), counts.end(), voxels.mutable_data_ptr<std::int64_t>());

  const Grid box = extent.box(grid.image);
  const std::array<int, 3> corner{extent.x_begin, extent.y_begin, extent.word_begin};
  BoxedSurface pred(pred_bits.get(), grid, box, corner),
      target(target_bits.get(), grid, box, corner);
  run_tasks(2 * pred.tasks(), [&] {
    return [&](std::int64_t task) {
      (task % 2 == 0 ? pred : target).mark(static_cast<int>(task / 2));
    };
  });
  pred.count();
  target.count();

  at::Tensor there = at::empty({pred.voxels()}, options.dtype(at::kDouble));
  at::Tensor back = at::empty({target.voxels()}, options.dtype(at::kDouble));
  auto *to_there = there.mutable_data_ptr<double>(), *to_back = back.mutable_data_ptr<double>();
  if (arguments.equal) {
    measure(pred, target, arguments.whole, box.x, to_there, to_back);
  } else {
    measure(pred, target, arguments.real, box.x, to_there, to_back);
  }
  return {there, back, voxels};
}

}  // namespace

TORCH_LIBRARY_IMPL(semiseg, CPU, m) { m.impl("surface_distances", surface_distances); }

}  // namespace semiseg::surfaces
