/* Product of matrices, added to the result: result += left right.
 *
 * Columns of some rows of `right` are copied to the second-level cache, in panels as wide as the sums that the registers
 * hold, and the same inputs of a few rows of `left` to the first-level cache. Meanwhile what will be copied next is
 * fetched from memory. Each sum adds its products one after the other: neither the numbers of rows and columns nor that
 * of threads change a bit of it.
 *
 * A piece of work is a range of rows and columns of the result.
 */

#include <string.h>

#include "kernels.h"

/* Inputs and columns of `right` that are copied at once. */
#define DEPTH 256
#define WIDTH 256
/* Floats of a cache line. */
#define LINE 16
EXPORT int64_t matrix_scratch(void);

/* Sums in registers, at most: rows, and floats of a row. */
#define MOST_ROWS 14
#define MOST_COLUMNS 32

typedef struct {
    Queue queue;
    int64_t rows;
    int64_t inputs;
    int64_t columns;
    int64_t piece_rows;
    int64_t piece_columns;
    int64_t left_stride; /* from one row to the next */
    int64_t right_stride;
    int64_t result_stride;
    int64_t worker;     /* of the next thread */
    const float *left;  /* (rows, inputs) */
    const float *right; /* (inputs, columns) */
    float *result;      /* (rows, columns) */
    float *scratch;     /* (threads, matrix_scratch()), beginning with a cache line */
} MatrixTask;

/* What a thread copies to. */
typedef struct {
    float right[DEPTH * WIDTH];
    float left[MOST_ROWS * DEPTH];
    float sums[MOST_ROWS * MOST_COLUMNS]; /* of a panel that is wider than what is left of the columns */
} Scratch;

/* Rows whose first DEPTH floats are fetched, `each` of them during every register block. */
typedef struct {
    const float *row;
    int64_t stride;
    int64_t each;
    int64_t left;
} Fetch;

/* One register block: some rows, a panel of columns, `depth` inputs. */
typedef struct {
    const float *left;  /* (rows, DEPTH) */
    const float *right; /* (depth, columns of a panel) */
    float *result;
    int64_t stride; /* of `result` */
    int64_t depth;
    const float *fetched[DEPTH / LINE]; /* a row for every LINE inputs, one line of it with each */
} Step;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

/* Enters the next rows into `step`, from place `at` on; returns the place behind them. */
INLINE int64_t enter(Fetch *fetch, Step *step, int64_t at) {
    for (int64_t i = 0; i < fetch->each && fetch->left > 0 && at < DEPTH / LINE; i++, fetch->left--) {
        step->fetched[at++] = fetch->row;
        fetch->row += fetch->stride;
    }
    return at;
}

#if defined(__GNUC__)

#if HAS_TARGETS
#define LANES 16
#define REGISTER_ROWS 14
#define KERNELS(kernel) \
    kernel(1) kernel(2) kernel(3) kernel(4) kernel(5) kernel(6) kernel(7) kernel(8) kernel(9) kernel(10) kernel(11) \
        kernel(12) kernel(13) kernel(14)
#define TARGET TARGET_AVX512
#define NAME(name) name##_avx512
#include "matrix_variant.h"

#define LANES 8
#define REGISTER_ROWS 6
#define KERNELS(kernel) kernel(1) kernel(2) kernel(3) kernel(4) kernel(5) kernel(6)
#define TARGET TARGET_AVX2
#define NAME(name) name##_avx2
#include "matrix_variant.h"
#endif

#define LANES 4
#define REGISTER_ROWS 6
#define KERNELS(kernel) kernel(1) kernel(2) kernel(3) kernel(4) kernel(5) kernel(6)
#define TARGET
#define NAME(name) name##_baseline
#include "matrix_variant.h"

/* Floats of scratch memory for each thread, whole cache lines. */
EXPORT int64_t matrix_scratch(void) { return parts((int64_t)(sizeof(Scratch) / sizeof(float)), LINE) * LINE; }

/* Whether the processor has the instructions with which this was measured to be faster than oneDNN. */
EXPORT int64_t matrix_is_fast(void) { return instruction_set() >= AVX2; }

EXPORT void add_product(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: add_product_avx512(task); return;
    case AVX2: add_product_avx2(task); return;
    case BASELINE: break;
    }
#endif
    add_product_baseline(task);
}

#else

EXPORT int64_t matrix_scratch(void) { return 0; }
EXPORT int64_t matrix_is_fast(void) { return 0; }
EXPORT void add_product(void *task) { (void)task; }

#endif
