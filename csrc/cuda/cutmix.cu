// splice and cutmix on CUDA: one thread moves 16 neighbouring bytes, in one piece if they have one
// source.

#include "cutmix.h"
#include "launch.h"

namespace semiseg {
namespace {

constexpr int kBlock = 256;

struct alignas(16) Word {
  std::uint64_t low, high;
};

// A pair, and the number of blocks that splice each of its volumes.
struct Work {
  SplicePair pair;
  bool wide;  // whether every volume begins at the alignment of a Word
  unsigned blocks_a_volume;
};

// Splices the elements of one piece, which begins at element `first` of the volume.
template <typename Element, typename Piece>
__device__ void splice_piece(const SplicePair& pair, std::int64_t volume, unsigned first,
                             const SpliceSize& size, const SpliceBox& box) {
  constexpr int kCount = sizeof(Piece) / sizeof(Element);
  const unsigned row = first / size.z;
  int x = static_cast<int>(row / size.y);
  int y = static_cast<int>(row % size.y);
  int z = static_cast<int>(first % size.z);
  unsigned inside = 0;  // one bit for each element
  for (int k = 0; k < kCount; ++k) {
    inside |= unsigned{box.holds(x, y, z)} << k;
    if (++z < size.z) continue;
    z = 0;
    if (++y < size.y) continue;
    y = 0;
    ++x;
  }
  const std::int64_t at = volume * size.voxels() + first;
  const auto* a = static_cast<const Element*>(pair.a) + at;
  const auto* b = static_cast<const Element*>(pair.b) + at;
  auto* out = static_cast<Element*>(pair.out) + at;
  if (inside == 0 || inside == (1u << kCount) - 1) {
    *reinterpret_cast<Piece*>(out) = *reinterpret_cast<const Piece*>(inside ? b : a);
  } else {
    for (int k = 0; k < kCount; ++k) out[k] = (inside >> k & 1 ? b : a)[k];
  }
}

template <typename Element>
__device__ void splice_thread(const Work& work, std::int64_t volume, std::int64_t thread,
                              const SpliceSize& size, const SpliceBox& box) {
  const std::int64_t first = thread * (work.wide ? sizeof(Word) / sizeof(Element) : 1);
  if (first >= size.voxels()) return;
  if (work.wide) {
    splice_piece<Element, Word>(work.pair, volume, static_cast<unsigned>(first), size, box);
  } else {
    splice_piece<Element, Element>(work.pair, volume, static_cast<unsigned>(first), size, box);
  }
}

// The first `label_from` blocks splice the images, the others the labels.
__global__ void splice_pairs(Work image, Work label, unsigned label_from, SpliceSize size,
                             SpliceBoxes boxes) {
  Work work = image;
  unsigned block = blockIdx.x;
  if (block >= label_from) {
    work = label;
    block -= label_from;
  }
  const std::int64_t volume = block / work.blocks_a_volume;
  const std::int64_t thread = std::int64_t{block % work.blocks_a_volume} * kBlock + threadIdx.x;
  const SpliceBox box = boxes.box(volume / work.pair.channels, size);
  switch (work.pair.bytes) {
    case 1:
      return splice_thread<std::uint8_t>(work, volume, thread, size, box);
    case 2:
      return splice_thread<std::uint16_t>(work, volume, thread, size, box);
    case 4:
      return splice_thread<std::uint32_t>(work, volume, thread, size, box);
    case 8:
      return splice_thread<std::uint64_t>(work, volume, thread, size, box);
    default:
      return splice_thread<Bytes16>(work, volume, thread, size, box);
  }
}

bool begins_a_word(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(Word) == 0;
}

Work work_of(const SplicePair& pair, const SpliceSize& size) {
  const std::int64_t bytes = std::int64_t{size.voxels()} * pair.bytes;
  const bool wide = bytes % sizeof(Word) == 0 && begins_a_word(pair.a) && begins_a_word(pair.b) &&
                    begins_a_word(pair.out);
  const int bytes_a_thread = wide ? int{sizeof(Word)} : pair.bytes;
  return {pair, wide, static_cast<unsigned>(blocks_for(bytes / bytes_a_thread, kBlock))};
}

}  // namespace

cudaError_t launch_splice(const SplicePair* pairs, int count, const SpliceSize& size,
                          const SpliceBoxes& boxes, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const Work image = work_of(pairs[0], size), label = work_of(pairs[count - 1], size);
  const std::int64_t image_blocks = pairs[0].slabs * image.blocks_a_volume;
  const std::int64_t label_blocks = count == 1 ? 0 : pairs[1].slabs * label.blocks_a_volume;
  return launch(splice_pairs, image_blocks + label_blocks, kBlock, 0, stream, image, label,
                static_cast<unsigned>(image_blocks), size, boxes);
}

}  // namespace semiseg
