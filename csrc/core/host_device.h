#pragma once

// One spelling for functions that the CPU kernels and the CUDA kernels share.
#ifdef __CUDACC__
#define SEMISEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEMISEG_HOST_DEVICE inline
#endif

#include <cstddef>
#include <cstdint>

namespace semiseg {

template <typename T>
SEMISEG_HOST_DEVICE T smaller(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
SEMISEG_HOST_DEVICE T larger(T a, T b) {
  return a < b ? b : a;
}

// Zeros below the lowest and above the highest set bit of a nonzero word.
SEMISEG_HOST_DEVICE int zeros_below(std::uint64_t word) {
#ifdef __CUDA_ARCH__
  return __ffsll(static_cast<long long>(word)) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

SEMISEG_HOST_DEVICE int zeros_above(std::uint64_t word) {
#ifdef __CUDA_ARCH__
  return __clzll(static_cast<long long>(word));
#else
  return __builtin_clzll(word);
#endif
}

// A line through a volume: element i lies `stride` elements after element i - 1.
template <typename T>
struct Line {
  T* first;
  std::ptrdiff_t stride;

  SEMISEG_HOST_DEVICE T& operator[](int i) const { return first[i * stride]; }
};

}  // namespace semiseg
