/* Softmax of the rows of a matrix, in place: the largest number, exponentials and their sum, division by the sum.
 *
 * A row stays in the first-level cache from the first pass to the last. A piece of work is some rows.
 */

#include <math.h>
#include <string.h>

#include "kernels.h"

#define ROWS_PER_PIECE 16

typedef struct {
    Queue queue;
    int64_t rows;
    int64_t columns;
    float *x; /* (rows, columns) */
} SoftmaxTask;

#if defined(__GNUC__)

#if HAS_TARGETS
#define LANES 16
#define TARGET TARGET_AVX512
#define NAME(name) name##_avx512
#include "softmax_row.h"
#include "softmax_variant.h"

#define LANES 8
#define TARGET TARGET_AVX2
#define NAME(name) name##_avx2
#include "softmax_row.h"
#include "softmax_variant.h"
#endif

#define LANES 4
#define TARGET
#define NAME(name) name##_baseline
#include "softmax_row.h"
#include "softmax_variant.h"

EXPORT int64_t softmax_pieces(int64_t rows) { return (rows + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE; }

/* Whether the processor has the instructions with which this was measured to be faster than PyTorch. */
EXPORT int64_t softmax_is_fast(void) { return instruction_set() >= AVX2; }

EXPORT void softmax_rows(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: softmax_avx512(task); return;
    case AVX2: softmax_avx2(task); return;
    case BASELINE: break;
    }
#endif
    softmax_baseline(task);
}

#else

EXPORT int64_t softmax_pieces(int64_t rows) { return rows; }
EXPORT int64_t softmax_is_fast(void) { return 0; }
EXPORT void softmax_rows(void *task) { (void)task; }

#endif
