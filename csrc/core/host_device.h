#pragma once

// One spelling for functions that the CPU kernels and the CUDA kernels share.
#ifdef __CUDACC__
#define SEMISEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEMISEG_HOST_DEVICE inline
#endif

#include <cstddef>

namespace semiseg {

// A line through a volume: element i lies `stride` elements after element i - 1.
template <typename T>
struct Line {
  T* first;
  std::ptrdiff_t stride;

  SEMISEG_HOST_DEVICE T& operator[](int i) const { return first[i * stride]; }
};

}  // namespace semiseg
