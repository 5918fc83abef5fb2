/* Product of a few rows with a matrix: y = x W + bias, for a W of (inputs, outputs) in memory, as GPT-2 stores it.
 *
 * Such a product takes as long as reading W, so W is read once, several of its rows side by side from beginning to
 * end, and the sums, which are few, stay in the first-level cache. Each sum adds its bias and its inputs one after the
 * other: neither the number of rows nor that of threads nor the place of a column changes a bit of it.
 *
 * A piece of work is a range of columns.
 */

#include "kernels.h"

/* Rows of W that are read side by side. */
#define DEPTH 8
/* Floats of a cache line. */
#define LINE 16
/* Rows of x that are multiplied at a time; more of them find their part of W in the second-level cache. */
#define MOST_ROWS 8

typedef struct {
    Queue queue;
    int64_t rows;
    int64_t inputs;
    int64_t outputs;
    int64_t columns;     /* per piece */
    const float *x;      /* (rows, inputs) */
    const float *weight; /* (inputs, outputs) */
    const float *bias;   /* (outputs), or null */
    float *result;       /* (rows, outputs) */
} ProductTask;

/* What is added to the sums of some rows at once: `depth` inputs of each, all columns of a piece. */
typedef struct {
    float x[DEPTH][MOST_ROWS];
    int64_t depth;
    const float *weight; /* of the first input and column */
    float *sums;         /* of the first row and column */
    int64_t columns;
    int64_t outputs; /* from one row of `weight` or `sums` to the next */
} Step;

#if defined(__GNUC__)

#if HAS_TARGETS
#define LANES 16
#define TARGET TARGET_AVX512
#define NAME(name) name##_avx512
#include "product_variant.h"

#define LANES 8
#define TARGET TARGET_AVX2
#define NAME(name) name##_avx2
#include "product_variant.h"
#endif

#define LANES 4
#define TARGET
#define NAME(name) name##_baseline
#include "product_variant.h"

/* Whether the processor has the instructions with which this was measured to be faster than PyTorch. */
EXPORT int64_t product_is_fast(void) { return instruction_set() >= AVX2; }

/* Both give the same bits; with two to four rows the narrower vectors were measured to read faster. */
INLINE int prefers_narrow(const ProductTask *task) { return task->rows >= 2 && task->rows <= 4; }

EXPORT void multiply_rows(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: prefers_narrow(task) ? multiply_avx2(task) : multiply_avx512(task); return;
    case AVX2: multiply_avx2(task); return;
    case BASELINE: break;
    }
#endif
    multiply_baseline(task);
}

#else

EXPORT int64_t product_is_fast(void) { return 0; }
EXPORT void multiply_rows(void *task) { (void)task; }

#endif
