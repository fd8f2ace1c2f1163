// largest_component on CUDA: union-find over voxels, one thread for each voxel, in four kernels. A
// block takes kBlock voxels of one item in scan order. The part of a run along z that lies in a
// block starts as one tree: its voxels point to its first voxel.

#include "largest_component.h"
#include "launch.h"

namespace semiseg::components {
namespace {

constexpr int kBlock = 256;
constexpr int kWord = 32;

// Where a thread's voxel lies. The 64-bit numbers address the batch, the 32-bit numbers the item.
struct Place {
  std::int64_t item, first;  // first: the item's first voxel
  std::int32_t voxel;
  bool inside;

  __device__ explicit Place(const Grid& grid, unsigned item_blocks)
      : item(blockIdx.x / item_blocks), first(item * grid.voxels()) {
    const std::int64_t wide =
        static_cast<std::int64_t>(blockIdx.x % item_blocks) * kBlock + threadIdx.x;
    inside = wide < grid.voxels();
    voxel = inside ? static_cast<std::int32_t>(wide) : 0;
  }
};

// Runs of a foreground label along z, as far as they lie in the block. All threads of a block
// construct this together.
struct BlockRun {
  bool begins;  // whether the thread's voxel is the first of its run; false in the background
  bool ends;    // whether it is the last of its run; false in the background
  int since;    // voxels from the first of the run to the thread's

  template <typename T>
  __device__ BlockRun(const T* labels, const Grid& grid, int classes, const Place& at,
                      unsigned* words) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kBlock / kWord) words[thread] = 0;
    __syncthreads();
    const T label = at.inside ? labels[at.voxel] : T{0};
    const bool foreground = is_foreground(label, classes);
    const int z = at.voxel % grid.z;
    begins = foreground && (thread == 0 || z == 0 || labels[at.voxel - 1] != label);
    ends = foreground && (thread == kBlock - 1 || z == grid.z - 1 || labels[at.voxel + 1] != label);
    if (begins) atomicOr(words + thread / kWord, 1u << thread % kWord);
    __syncthreads();
    since = 0;
    if (foreground && !begins) {
      int word = thread / kWord;
      unsigned bits = words[word] & ((1u << thread % kWord) - 1);
      while (bits == 0) bits = words[--word];
      since = thread - (word * kWord + 31 - __clz(static_cast<int>(bits)));
    }
  }
};

// Makes one tree for each run of the block, of size 0 so far, and clears the largest components.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    plant(const T* labels, std::int32_t* parents, Key* best, std::int64_t keys, Grid grid,
          int classes, unsigned item_blocks) {
  __shared__ unsigned words[kBlock / kWord];
  for (std::int64_t key = thread_index(); key < keys; key += std::int64_t{gridDim.x} * kBlock)
    best[key] = 0;
  const Place at(grid, item_blocks);
  const BlockRun run(labels + at.first, grid, classes, at, words);
  if (run.begins) {
    parents[at.first + at.voxel] = ~0;
  } else if (run.since > 0) {
    parents[at.first + at.voxel] = at.voxel - run.since;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    join(const T* labels, std::int32_t* parents, Grid grid, int classes, unsigned item_blocks) {
  const Place at(grid, item_blocks);
  labels += at.first;
  parents += at.first;
  if (!at.inside || !is_foreground(labels[at.voxel], classes)) return;
  const int z = at.voxel % grid.z, row = at.voxel / grid.z;
  if (threadIdx.x == 0 && z > 0 && labels[at.voxel - 1] == labels[at.voxel])
    unite<Shared>(parents, at.voxel, at.voxel - 1);
  for_each_contact(labels, grid, row / grid.y, row % grid.y, z,
                   [&](std::int32_t other) { unite<Shared>(parents, at.voxel, other); });
}

// Adds the sizes of the block's runs to their roots, and proposes each sum as the largest of its
// class. The last thread at a root proposes its full size; what was proposed before is smaller.
template <typename T>
__global__ void __launch_bounds__(kBlock) count(const T* labels, std::int32_t* parents, Key* best,
                                                Grid grid, int classes, unsigned item_blocks) {
  __shared__ unsigned words[kBlock / kWord];
  const Place at(grid, item_blocks);
  labels += at.first;
  parents += at.first;
  const BlockRun run(labels, grid, classes, at, words);
  if (!run.ends) return;
  const std::int32_t size = run.since + 1, first = at.voxel - run.since;
  const std::int32_t root = find_root<Shared>(parents, first);
  if (root != first) Shared::store(parents + first, root);
  const std::int32_t before = ~atomicAdd(parents + root, -size);
  propose(best + at.item * classes + labels[at.voxel], key_of(before + size, root));
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    keep(const T* labels, T* out, std::int32_t* parents, const Key* best, Grid grid, int classes,
         unsigned item_blocks) {
  const Place at(grid, item_blocks);
  if (!at.inside) return;
  const T label = labels[at.first + at.voxel];
  bool kept = is_foreground(label, classes);
  if (kept) {
    const std::int32_t largest = root_of(best[at.item * classes + label]);
    kept = find_root<Shared>(parents + at.first, at.voxel) == largest;
  }
  out[at.first + at.voxel] = kept ? label : T{0};
}

}  // namespace

std::size_t largest_component_scratch(std::int64_t items, const Grid& grid, int classes) {
  return items * (classes * sizeof(Key) + grid.voxels() * sizeof(std::int32_t));
}

template <typename T>
cudaError_t launch_largest_component(const T* labels, T* out, void* scratch, std::int64_t items,
                                     const Grid& grid, int classes, cudaStream_t stream) {
  const std::int64_t keys = items * classes;
  auto* const best = static_cast<Key*>(scratch);
  auto* const parents = reinterpret_cast<std::int32_t*>(best + keys);
  const auto item_blocks = static_cast<unsigned>(blocks_for(grid.voxels(), kBlock));
  const std::int64_t blocks = items * item_blocks;
  if (const auto error = launch(plant<T>, blocks, kBlock, 0, stream, labels, parents, best, keys,
                                grid, classes, item_blocks))
    return error;
  if (const auto error =
          launch(join<T>, blocks, kBlock, 0, stream, labels, parents, grid, classes, item_blocks))
    return error;
  if (const auto error = launch(count<T>, blocks, kBlock, 0, stream, labels, parents, best, grid,
                                classes, item_blocks))
    return error;
  return launch(keep<T>, blocks, kBlock, 0, stream, labels, out, parents, best, grid, classes,
                item_blocks);
}

#define SEMISEG_LARGEST_COMPONENT(T)                                                            \
  template cudaError_t launch_largest_component(const T*, T*, void*, std::int64_t, const Grid&, \
                                                int, cudaStream_t)

SEMISEG_LARGEST_COMPONENT(std::uint8_t);
SEMISEG_LARGEST_COMPONENT(std::uint16_t);
SEMISEG_LARGEST_COMPONENT(std::uint32_t);
SEMISEG_LARGEST_COMPONENT(std::uint64_t);

}  // namespace semiseg::components
