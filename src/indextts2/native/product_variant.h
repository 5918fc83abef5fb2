/* Included by product.c for each instruction set: LANES floats a vector, TARGET and NAME. */

#define VECTOR_TYPE NAME(ProductVector)
#define LOOSE_TYPE NAME(LooseProductVector)

typedef float VECTOR_TYPE __attribute__((vector_size(4 * LANES)));
/* The same anywhere in memory. */
typedef float LOOSE_TYPE __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Adds DEPTH or fewer inputs to all columns of ROWS sums. Meanwhile those behind them are fetched in the order in which
 * they lie in memory, which is faster than leaving it to the processor to follow DEPTH rows of W. */
#define KERNEL(ROWS)                                                                                                \
    TARGET static void NAME(add_##ROWS)(const Step *step) {                                                         \
        const float *weight = step->weight, *next = weight + DEPTH * step->outputs, *end = next + step->columns;    \
        float *sums = step->sums;                                                                                   \
        int64_t outputs = step->outputs, columns = step->columns, at = 0;                                           \
        for (; step->depth == DEPTH && at + LANES <= columns; at += LANES) {                                        \
            VECTOR_TYPE part[ROWS];                                                                                 \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                  \
                part[r] = *(const LOOSE_TYPE *)(sums + r * outputs + at);                                           \
            _Pragma("GCC unroll 8") for (int k = 0; k < DEPTH; k++) {                                               \
                if (k * LANES % LINE == 0) __builtin_prefetch(next + k * LANES);                                    \
                VECTOR_TYPE weights = *(const LOOSE_TYPE *)(weight + k * outputs + at);                             \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) part[r] += weights * step->x[k][r];          \
            }                                                                                                       \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                  \
                *(LOOSE_TYPE *)(sums + r * outputs + at) = part[r];                                                 \
            next += DEPTH * LANES;                                                                                  \
            if (next >= end) {                                                                                      \
                next += outputs - columns;                                                                          \
                end += outputs;                                                                                     \
            }                                                                                                       \
        }                                                                                                           \
        for (int64_t k = 0; k < step->depth; k++)                                                                   \
            for (int r = 0; r < ROWS; r++)                                                                          \
                for (int64_t o = at; o < columns; o++)                                                              \
                    sums[r * outputs + o] += weight[k * outputs + o] * step->x[k][r];                               \
    }

KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)
KERNEL(5)
KERNEL(6)
KERNEL(7)
KERNEL(8)

TARGET static void NAME(multiply_piece)(const ProductTask *task, int64_t first) {
    static void (*const add[MOST_ROWS])(const Step *) = {
        NAME(add_1), NAME(add_2), NAME(add_3), NAME(add_4), NAME(add_5), NAME(add_6), NAME(add_7), NAME(add_8),
    };
    int64_t outputs = task->outputs, rest = outputs - first;
    Step step = {.columns = task->columns < rest ? task->columns : rest, .outputs = outputs};
    for (int64_t row = 0; row < task->rows; row++)
        for (int64_t o = 0; o < step.columns; o++)
            task->result[row * outputs + first + o] = task->bias ? task->bias[first + o] : 0.0f;
    for (int64_t input = 0; input < task->inputs; input += step.depth) {
        step.depth = task->inputs - input < DEPTH ? task->inputs - input : DEPTH;
        step.weight = task->weight + input * outputs + first;
        for (int64_t row = 0, rows; row < task->rows; row += rows) {
            rows = task->rows - row < MOST_ROWS ? task->rows - row : MOST_ROWS;
            step.sums = task->result + row * outputs + first;
            for (int64_t k = 0; k < step.depth; k++)
                for (int64_t r = 0; r < rows; r++) step.x[k][r] = task->x[(row + r) * task->inputs + input + k];
            add[rows - 1](&step);
        }
    }
}

TARGET static void NAME(multiply)(ProductTask *task) {
    for (int64_t piece = claim(&task->queue.next); piece < task->queue.pieces; piece = claim(&task->queue.next))
        NAME(multiply_piece)(task, piece * task->columns);
}

#undef VECTOR_TYPE
#undef LOOSE_TYPE
#undef KERNEL
#undef LANES
#undef TARGET
#undef NAME
