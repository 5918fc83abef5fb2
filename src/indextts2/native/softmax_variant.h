/* Included by softmax.c for each instruction set, after softmax_row.h: TARGET and NAME. */

TARGET static void NAME(softmax)(SoftmaxTask *task) {
    for (int64_t piece = claim(&task->queue.next); piece < task->queue.pieces; piece = claim(&task->queue.next)) {
        int64_t end = (piece + 1) * ROWS_PER_PIECE < task->rows ? (piece + 1) * ROWS_PER_PIECE : task->rows;
        for (int64_t row = piece * ROWS_PER_PIECE; row < end; row++)
            NAME(softmax_row)(task->x + row * task->columns, task->columns);
    }
}

#undef LANES
#undef TARGET
#undef NAME
