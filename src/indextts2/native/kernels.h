/* What the kernels share: exported symbols, instruction sets chosen at run time, work handed out to threads. */

#ifndef INDEXTTS2_KERNELS_H
#define INDEXTTS2_KERNELS_H

#include <stdint.h>

/* Raised whenever a task below changes; library.py refuses a library of another number. */
#define INTERFACE_VERSION 7

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(_MSC_VER)
#define INLINE static __forceinline
#define RESTRICT __restrict
#else
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT restrict
#endif

/* On x86 the same code is compiled three times and the widest instruction set of the processor is taken. */
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define HAS_TARGETS 1
#define AVX512_FEATURES "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"
#if defined(__clang__)
#define TARGET_AVX512 __attribute__((target(AVX512_FEATURES), min_vector_width(512)))
#else
#define TARGET_AVX512 __attribute__((target(AVX512_FEATURES ",prefer-vector-width=512")))
#endif
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#else
#define HAS_TARGETS 0
#endif

/* Every thread that works on a task calls the same function, which claims pieces until none is left. */
typedef struct {
    int64_t pieces;
    int64_t next;
} Queue;

#if defined(_MSC_VER)
#include <intrin.h>
INLINE int64_t claim(int64_t *next) { return _InterlockedExchangeAdd64(next, 1); }
#else
INLINE int64_t claim(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
#endif

typedef enum { BASELINE, AVX2, AVX512 } InstructionSet;

/* The widest that the processor has, within the limit set by `limit_instruction_set`. */
InstructionSet instruction_set(void);

#endif
