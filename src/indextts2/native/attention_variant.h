/* Included by attention.c for each instruction set, after softmax_row.h: LANES floats a vector, TARGET and NAME. */

#define VECTOR_TYPE NAME(AttentionVector)
#define LOOSE_TYPE NAME(LooseAttentionVector)
#define QUAD_TYPE NAME(AttentionQuad)
#define PARTS_TYPE NAME(AttentionParts)

typedef float VECTOR_TYPE __attribute__((vector_size(4 * LANES)));
typedef float QUAD_TYPE __attribute__((vector_size(16)));
/* The same anywhere in memory. */
typedef float LOOSE_TYPE __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef union {
    VECTOR_TYPE vector;
    QUAD_TYPE quads[LANES / 4];
} PARTS_TYPE;

TARGET INLINE float NAME(sum)(VECTOR_TYPE vector) {
    PARTS_TYPE parts = {vector};
    QUAD_TYPE quad = parts.quads[0];
    _Pragma("GCC unroll 4") for (int i = 1; i < LANES / 4; i++) quad += parts.quads[i];
    return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

/* Scores of one query (width) and all keys (rows, width). */
TARGET INLINE void NAME(score)(float *scores, const float *query, const float *keys, int64_t rows, int64_t width) {
    float scale = 1.0f / sqrtf((float)width);
    for (int64_t row = 0; row < rows; row++, keys += width) {
        VECTOR_TYPE first = {0}, second = {0};
        for (int64_t at = 0; at < width; at += 2 * LANES) {
            first += *(const LOOSE_TYPE *)(query + at) * *(const LOOSE_TYPE *)(keys + at);
            second += *(const LOOSE_TYPE *)(query + at + LANES) * *(const LOOSE_TYPE *)(keys + at + LANES);
        }
        scores[row] = NAME(sum)(first + second) * scale;
    }
}

/* Sums of values (rows, width) by their weights, two vectors of the width at a time; rows take turns in four sums. */
TARGET INLINE void NAME(weigh)(float *result, const float *weights, const float *values, int64_t rows, int64_t width) {
    for (int64_t at = 0; at < width; at += 2 * LANES) {
        VECTOR_TYPE sums[4][2] = {0};
        const float *value = values + at;
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++, value += width) {
                sums[i][0] += *(const LOOSE_TYPE *)value * weights[row + i];
                sums[i][1] += *(const LOOSE_TYPE *)(value + LANES) * weights[row + i];
            }
        for (; row < rows; row++, value += width) {
            sums[0][0] += *(const LOOSE_TYPE *)value * weights[row];
            sums[0][1] += *(const LOOSE_TYPE *)(value + LANES) * weights[row];
        }
        *(LOOSE_TYPE *)(result + at) = (sums[0][0] + sums[1][0]) + (sums[2][0] + sums[3][0]);
        *(LOOSE_TYPE *)(result + at + LANES) = (sums[0][1] + sums[1][1]) + (sums[2][1] + sums[3][1]);
    }
}

TARGET static void NAME(attend_head)(const AttentionTask *task, int64_t head, float *scores) {
    int64_t width = task->width, all = task->held + task->rows, line = task->heads * width;
    float *keys = task->keys + head * task->head_stride, *values = task->values + head * task->head_stride;
    const float *query = task->qkv + head * width;
    for (int64_t row = 0; row < task->rows; row++) {
        const float *key = query + (3 * row + 1) * line;
        memcpy(keys + (task->held + row) * width, key, (size_t)width * sizeof(float));
        memcpy(values + (task->held + row) * width, key + line, (size_t)width * sizeof(float));
    }
    for (int64_t row = 0; row < task->rows; row++) {
        NAME(score)(scores, query + 3 * row * line, keys, all, width);
        if (task->mask)
            for (int64_t i = 0; i < all; i++) scores[i] += task->mask[row * all + i];
        NAME(softmax_row)(scores, all);
        NAME(weigh)(task->result + row * line + head * width, scores, values, all, width);
    }
}

TARGET static void NAME(attend)(AttentionTask *task) {
    float *scores = task->scratch + claim(&task->worker) * (task->held + task->rows);
    for (int64_t head = claim(&task->queue.next); head < task->queue.pieces; head = claim(&task->queue.next))
        NAME(attend_head)(task, head, scores);
}

#undef VECTOR_TYPE
#undef LOOSE_TYPE
#undef QUAD_TYPE
#undef PARTS_TYPE
#undef LANES
#undef TARGET
#undef NAME
