#include "kernels.h"

static int limit = AVX512;

EXPORT int64_t interface_version(void) { return INTERFACE_VERSION; }

/* For tests of the narrower variants: none wider than this is used from now on. */
EXPORT void limit_instruction_set(int64_t widest) { limit = (int)widest; }

static InstructionSet widest_of_processor(void) {
#if HAS_TARGETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return BASELINE;
}

/* Asked once: on a virtual machine the question itself takes as long as a small kernel. */
InstructionSet instruction_set(void) {
    static int known = -1;
    if (known < 0) known = widest_of_processor();
    return known < limit ? (InstructionSet)known : (InstructionSet)limit;
}

EXPORT const char *instruction_set_name(void) {
    static const char *const names[] = {"baseline", "AVX2", "AVX-512"};
    return names[instruction_set()];
}
