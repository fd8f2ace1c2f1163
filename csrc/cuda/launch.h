#pragma once

// How every kernel is launched. tests/native replaces this to run kernels on a CPU.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace semiseg {

// Blocks that hold `threads` threads. The grid's first dimension takes 2^31 - 1 blocks.
inline std::int64_t blocks_for(std::int64_t threads, int block) {
  return (threads + block - 1) / block;
}

// Dynamic shared memory that every device gives a block by default. The kernel's static shared
// memory counts too, so it may take no more than the 64 bytes left of 48 KiB; .ci/compile_cuda
// checks this.
constexpr int kDynamicSharedBytes = (48 << 10) - 64;

#ifdef __CUDACC__

__device__ inline std::int64_t thread_index() {
  return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// Runs kernel(arguments...) on the stream. A launch of no blocks does nothing and is no error. A
// launch of more blocks than a grid holds is an error.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int block,
                   std::size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), block, shared_bytes, stream>>>(
      static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

// Declares `name`, the block's dynamic shared memory, as an array of `type`.
#define SEMISEG_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char semiseg_shared[]; \
  type* const name = reinterpret_cast<type*>(semiseg_shared)

#endif

}  // namespace semiseg
