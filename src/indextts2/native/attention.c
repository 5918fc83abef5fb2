/* Attention of a few new rows over cached ones, which they are added to.
 *
 * A piece of work is a head: the keys and values of the new rows are copied behind those held, and each row, one after
 * the other, weighs all of them. While the first row does, they come into the cache.
 */

#include <math.h>
#include <string.h>

#include "kernels.h"

/* A head's width is a multiple of this. */
#define WIDTH_MULTIPLE 32

typedef struct {
    Queue queue;
    int64_t rows;
    int64_t heads;
    int64_t width;       /* of a head */
    int64_t held;        /* rows in the cache before */
    int64_t head_stride; /* from one head to the next in the cache */
    int64_t worker;      /* of the next thread */
    const float *qkv;    /* (rows, 3, heads, width): queries, keys and values */
    const float *mask;   /* (rows, held + rows): what is added to the scores, or null */
    float *keys;         /* (heads, capacity, width) */
    float *values;       /* the same */
    float *result;       /* (rows, heads, width) */
    float *scratch;      /* (threads, held + rows) */
} AttentionTask;

#if defined(__GNUC__)

#if HAS_TARGETS
#define LANES 16
#define TARGET TARGET_AVX512
#define NAME(name) name##_avx512
#include "softmax_row.h"
#include "attention_variant.h"

#define LANES 8
#define TARGET TARGET_AVX2
#define NAME(name) name##_avx2
#include "softmax_row.h"
#include "attention_variant.h"
#endif

#define LANES 4
#define TARGET
#define NAME(name) name##_baseline
#include "softmax_row.h"
#include "attention_variant.h"

EXPORT int64_t attention_width_multiple(void) { return WIDTH_MULTIPLE; }

/* Whether the processor has the instructions with which this was measured to be faster than PyTorch. */
EXPORT int64_t attention_is_fast(void) { return instruction_set() >= AVX2; }

EXPORT void attend_rows(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: attend_avx512(task); return;
    case AVX2: attend_avx2(task); return;
    case BASELINE: break;
    }
#endif
    attend_baseline(task);
}

#else

EXPORT int64_t attention_width_multiple(void) { return WIDTH_MULTIPLE; }
EXPORT int64_t attention_is_fast(void) { return 0; }
EXPORT void attend_rows(void *task) { (void)task; }

#endif
