/* Included by matrix.c for each instruction set: LANES floats a vector, at most REGISTER_ROWS rows of two vectors in
 * registers with KERNELS for every number of rows, TARGET and NAME. */

#define VECTOR_TYPE NAME(MatrixVector)
#define LOOSE_TYPE NAME(LooseMatrixVector)
#define PANEL (2 * LANES)

typedef float VECTOR_TYPE __attribute__((vector_size(4 * LANES)));
/* The same anywhere in memory. */
typedef float LOOSE_TYPE __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define KERNEL(ROWS)                                                                                                \
    TARGET static void NAME(block_##ROWS)(const Step *step) {                                                       \
        VECTOR_TYPE sums[ROWS][2];                                                                                  \
        const float *left = step->left, *right = step->right;                                                       \
        _Pragma("GCC unroll 14") for (int r = 0; r < ROWS; r++)                                                     \
            _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)                                                     \
                sums[r][v] = *(const LOOSE_TYPE *)(step->result + r * step->stride + v * LANES);                    \
        for (int64_t start = 0; start < step->depth; start += LINE) {                                               \
            const float *fetched = step->fetched[start / LINE];                                                     \
            int64_t end = smaller(start + LINE, step->depth);                                                       \
            for (int64_t k = start; k < end; k++, left++, right += PANEL, fetched += LINE) {                        \
                __builtin_prefetch(fetched, 0, 2);                                                                  \
                VECTOR_TYPE first = *(const VECTOR_TYPE *)right, second = *(const VECTOR_TYPE *)(right + LANES);    \
                _Pragma("GCC unroll 14") for (int r = 0; r < ROWS; r++) {                                           \
                    sums[r][0] += first * left[r * DEPTH];                                                          \
                    sums[r][1] += second * left[r * DEPTH];                                                         \
                }                                                                                                   \
            }                                                                                                       \
        }                                                                                                           \
        _Pragma("GCC unroll 14") for (int r = 0; r < ROWS; r++)                                                     \
            _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)                                                     \
                *(LOOSE_TYPE *)(step->result + r * step->stride + v * LANES) = sums[r][v];                          \
    }

KERNELS(KERNEL)

#define ENTRY(ROWS) NAME(block_##ROWS),

static void (*const NAME(blocks)[])(const Step *) = {KERNELS(ENTRY)};

/* Copies (depth, columns) of `right` panel by panel, zeros behind the last column. */
TARGET static void NAME(copy_right)(float *copy, const float *right, int64_t stride, int64_t depth, int64_t columns) {
    for (int64_t k = 0; k < depth; k++, right += stride)
        for (int64_t at = 0; at < columns; at += PANEL) {
            float *to = copy + at * depth + k * PANEL;
            if (at + PANEL <= columns) {
                *(VECTOR_TYPE *)to = *(const LOOSE_TYPE *)(right + at);
                *(VECTOR_TYPE *)(to + LANES) = *(const LOOSE_TYPE *)(right + at + LANES);
            } else {
                memset(to, 0, PANEL * sizeof(float));
                memcpy(to, right + at, (size_t)(columns - at) * sizeof(float));
            }
        }
}

/* A register block whose panel is wider than the `columns` left of the result. */
TARGET static void NAME(narrow_block)(Step step, int64_t rows, int64_t columns, float *sums) {
    float *result = step.result;
    int64_t stride = step.stride;
    size_t size = (size_t)columns * sizeof(float);
    memset(sums, 0, (size_t)(rows * PANEL) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) memcpy(sums + r * PANEL, result + r * stride, size);
    step.result = sums;
    step.stride = PANEL;
    NAME(blocks)[rows - 1](&step);
    for (int64_t r = 0; r < rows; r++) memcpy(result + r * stride, sums + r * PANEL, size);
}

/* Adds `depth` inputs to all rows of some columns, and fetches what `next` says. */
TARGET static void NAME(add_inputs)(
    const MatrixTask *task, const float *left, float *result, int64_t rows, int64_t columns, int64_t depth, Fetch next,
    Scratch *scratch
) {
    int64_t blocks = parts(rows, REGISTER_ROWS), panels = parts(columns, PANEL);
    next.each = parts(next.left, blocks * panels);
    for (int64_t block = 0; block < blocks; block++) {
        int64_t row = block * rows / blocks, end = (block + 1) * rows / blocks, after = (block + 2) * rows / blocks;
        Fetch rows_after = {left + end * task->left_stride, task->left_stride, 0, block + 1 < blocks ? after - end : 0};
        rows_after.each = parts(rows_after.left, panels);
        for (int64_t r = row; r < end; r++)
            memcpy(scratch->left + (r - row) * DEPTH, left + r * task->left_stride, (size_t)depth * sizeof(float));
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t at = panel * PANEL;
            Step step = {.left = scratch->left, .right = scratch->right + at * depth, .depth = depth};
            step.result = result + row * task->result_stride + at;
            step.stride = task->result_stride;
            for (int64_t i = enter(&next, &step, enter(&rows_after, &step, 0)); i < DEPTH / LINE; i++)
                step.fetched[i] = scratch->left;
            if (at + PANEL <= columns)
                NAME(blocks)[end - row - 1](&step);
            else
                NAME(narrow_block)(step, end - row, columns - at, scratch->sums);
        }
    }
}

TARGET static void NAME(add_piece)(const MatrixTask *task, int64_t row, int64_t first, Scratch *scratch) {
    int64_t rows = smaller(task->piece_rows, task->rows - row);
    int64_t last = smaller(first + task->piece_columns, task->columns), stride = task->right_stride;
    for (int64_t column = first; column < last; column += WIDTH) {
        int64_t columns = smaller(WIDTH, last - column);
        for (int64_t input = 0; input < task->inputs; input += DEPTH) {
            int64_t depth = smaller(DEPTH, task->inputs - input), after = input + depth;
            const float *right = task->right + input * stride + column;
            Fetch next = {right + depth * stride, stride, 0, smaller(DEPTH, task->inputs - after)};
            if (after == task->inputs && column + WIDTH < last)
                next = (Fetch){task->right + column + WIDTH, stride, 0, smaller(DEPTH, task->inputs)};
            NAME(copy_right)(scratch->right, right, stride, depth, columns);
            NAME(add_inputs)(
                task, task->left + row * task->left_stride + input,
                task->result + row * task->result_stride + column, rows, columns, depth, next, scratch);
        }
    }
}

TARGET static void NAME(add_product)(MatrixTask *task) {
    Scratch *scratch = (Scratch *)(task->scratch + claim(&task->worker) * matrix_scratch());
    int64_t across = parts(task->columns, task->piece_columns);
    for (int64_t piece = claim(&task->queue.next); piece < task->queue.pieces; piece = claim(&task->queue.next))
        NAME(add_piece)(task, piece / across * task->piece_rows, piece % across * task->piece_columns, scratch);
}

#undef VECTOR_TYPE
#undef LOOSE_TYPE
#undef PANEL
#undef KERNEL
#undef KERNELS
#undef ENTRY
#undef REGISTER_ROWS
#undef LANES
#undef TARGET
#undef NAME
