#pragma once

// Emulates a CUDA device on the CPU, so that the kernels of csrc/cuda run under the sanitizers
// without a GPU.
//
// Blocks run one after the other. The threads of a block take turns from barrier to barrier,
// forwards and backwards alternately, so that a kernel that lacks a barrier reads values that are
// not written yet. The emulation cannot show races between blocks, warps, memory ordering or speed.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ inline
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename To, typename From>
To emulated_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float value) { return emulated_bit_cast<int>(value); }
inline float __int_as_float(int bits) { return emulated_bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulated_bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return emulated_bit_cast<float>(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline float __expf(float value) { return std::exp(value); }
inline float __fdividef(float a, float b) { return a / b; }
template <typename T>
T __ldg(const T* from) {
  return *from;
}
using std::max;
using std::min;

template <typename T>
struct EmulatedSame {  // keeps an argument out of template deduction
  using Type = T;
};
template <typename T>
T atomicExch(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, value);
}
template <typename T>
T atomicAdd(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, static_cast<T>(*at + value));
}
template <typename T>
T atomicSub(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, static_cast<T>(*at - value));
}
template <typename T>
T atomicMax(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, std::max<T>(*at, value));
}
template <typename T>
T atomicMin(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, std::min<T>(*at, value));
}
template <typename T>
T atomicOr(T* at, typename EmulatedSame<T>::Type value) {
  return std::exchange(*at, static_cast<T>(*at | value));
}
template <typename T>
T atomicCAS(T* at, typename EmulatedSame<T>::Type expected, typename EmulatedSame<T>::Type value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

namespace emulator {

// One thread of a block, with its own stack, so that it can wait at a barrier.
struct Fiber {
  static constexpr std::size_t kStack = 128 << 10;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = nullptr;
  bool done = false;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline ucontext_t scheduler;
inline void* scheduler_sanitizer = nullptr;
inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_stack_size = 0;
inline Fiber* running = nullptr;  // null while threads run straight through
inline bool met_barrier = false;
inline const std::function<void()>* body = nullptr;
inline unsigned char* dynamic_shared = nullptr;

inline void enter([[maybe_unused]] Fiber& fiber) {
  running = &fiber;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_sanitizer, fiber.stack.get(), Fiber::kStack);
#endif
  swapcontext(&scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
#endif
  running = nullptr;
}

inline void leave(Fiber& fiber, [[maybe_unused]] bool last) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.sanitizer, scheduler_stack,
                                 scheduler_stack_size);
#endif
  swapcontext(&fiber.context, &scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.sanitizer, nullptr, nullptr);
#endif
}

inline void begin() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  Fiber& fiber = *running;
  (*body)();
  fiber.done = true;
  leave(fiber, true);
}

// Runs all threads of one block from barrier to barrier.
inline void run_cooperating(unsigned threads) {
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, Fiber::kStack};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, begin, 0);
  }
  bool backwards = false;
  for (unsigned left = threads; left > 0; backwards = !backwards) {
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned t = backwards ? threads - 1 - k : k;
      if (fibers[t]->done) continue;
      threadIdx.x = t;
      enter(*fibers[t]);
      left -= fibers[t]->done;
    }
  }
}

inline void run(unsigned blocks, unsigned threads, std::size_t shared_bytes,
                const std::function<void()>& thread) {
  body = &thread;
  blockDim.x = threads;
  gridDim.x = blocks;
  met_barrier = false;
  for (unsigned b = 0; b < blocks; ++b) {
    // Memory of the exact size, so that the address sanitizer finds accesses beyond it. It begins
    // with garbage.
    const std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
    std::memset(shared.get(), 0xA5, shared_bytes);
    dynamic_shared = shared.get();
    blockIdx.x = b;
    if (b == 0 || met_barrier) {
      run_cooperating(threads);
    } else {
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) thread();
    }
  }
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::met_barrier = true;
  if (emulator::running == nullptr) {
    std::fputs("a kernel met a barrier that its first block did not\n", stderr);
    std::abort();
  }
  const unsigned t = threadIdx.x;
  emulator::leave(*emulator::running, false);
  threadIdx.x = t;
}
inline void __threadfence() {}

#define SEMISEG_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(emulator::dynamic_shared)

namespace semiseg {

inline std::int64_t thread_index() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int block,
                   std::size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a device holds no more parameters");
  if (blocks > INT32_MAX || block > 1024 || shared_bytes > (48 << 10) - 64)
    return cudaErrorInvalidConfiguration;
  emulator::run(static_cast<unsigned>(blocks), static_cast<unsigned>(block), shared_bytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

}  // namespace semiseg
