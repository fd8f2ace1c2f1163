#pragma once

// Marks a function whose loops the compiler also vectorises for AVX2, or for AVX2 and AVX-512. The
// choice is made on the machine that runs it. Wheels move between machines, so nothing is compiled
// only for the building machine.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define SEMISEG_AVX2_TOO __attribute__((target_clones("avx2", "default")))
#define SEMISEG_AVX512_TOO __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SEMISEG_AVX2_TOO
#define SEMISEG_AVX512_TOO
#endif
