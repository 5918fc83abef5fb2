/* Included by convolution.c for each instruction set: LANES floats a vector, TARGET, NAME, and SHAPES of register
 * blocks (output channels, vectors of time), widest first. */

#define VECTOR_TYPE NAME(Vector)
#define LOOSE_TYPE NAME(LooseVector)

typedef float VECTOR_TYPE __attribute__((vector_size(4 * LANES)));
/* The same anywhere in memory. */
typedef float LOOSE_TYPE __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define KERNEL(CHANNELS, VECTORS)                                                                                   \
    TARGET static void NAME(block_##CHANNELS)(const ConvolutionTask *task, const Block *block) {                    \
        enum { SAMPLES = VECTORS * LANES };                                                                         \
        VECTOR_TYPE sums[CHANNELS][VECTORS];                                                                        \
        int64_t row = task->inputs * task->taps;                                                                    \
        _Pragma("GCC unroll 8") for (int c = 0; c < CHANNELS; c++)                                                  \
            _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                               \
                sums[c][v] = (VECTOR_TYPE){0} + (block->bias ? block->bias[c] : 0.0f);                              \
        const float *weight = block->weight;                                                                        \
        for (int64_t input = 0; input < task->inputs; input++) {                                                    \
            const float *x = block->x + input * task->stride;                                                       \
            for (int64_t tap = 0; tap < task->taps; tap++, weight++, x += task->dilation) {                         \
                VECTOR_TYPE samples[VECTORS];                                                                       \
                _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                           \
                    samples[v] = *(const LOOSE_TYPE *)(x + v * LANES);                                              \
                _Pragma("GCC unroll 8") for (int c = 0; c < CHANNELS; c++)                                          \
                    _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                       \
                        sums[c][v] += samples[v] * weight[c * row];                                                 \
            }                                                                                                       \
        }                                                                                                           \
        int whole = block->count == SAMPLES;                                                                        \
        float part[SAMPLES];                                                                                        \
        _Pragma("GCC unroll 8") for (int c = 0; c < CHANNELS; c++) {                                                \
            float *to = block->result + c * task->length;                                                           \
            const float *residual = block->residual ? block->residual + c * task->length : 0;                       \
            if (whole && residual) {                                                                                \
                _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                           \
                    *(LOOSE_TYPE *)(to + v * LANES) = sums[c][v] + *(const LOOSE_TYPE *)(residual + v * LANES);     \
            } else if (whole) {                                                                                     \
                _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                           \
                    *(LOOSE_TYPE *)(to + v * LANES) = sums[c][v];                                                   \
            } else {                                                                                                \
                _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)                                           \
                    *(LOOSE_TYPE *)(part + v * LANES) = sums[c][v];                                                 \
                for (int i = 0; i < block->count; i++) to[i] = residual ? part[i] + residual[i] : part[i];          \
            }                                                                                                       \
        }                                                                                                           \
    }

SHAPES(KERNEL)

/* The widest block that fits into the channels left, over all samples of the tile. */
#define TRY(CHANNELS, VECTORS)                                                                                      \
    if (left >= CHANNELS) {                                                                                         \
        width = CHANNELS;                                                                                           \
        samples = VECTORS * LANES;                                                                                  \
        kernel = NAME(block_##CHANNELS);                                                                            \
    } else

TARGET static void NAME(convolve_piece)(const ConvolutionTask *task, int64_t piece, float *scratch) {
    int64_t group = piece % task->groups, batch = piece / task->groups / task->tiles;
    int64_t start = piece / task->groups % task->tiles * task->tile;
    int64_t stop = start + task->tile < task->length ? start + task->tile : task->length;
    int64_t end = (group + 1) * task->outputs / task->groups;
    activate_tile(task, task->x + batch * task->inputs * task->length, start, stop, scratch);
    for (int64_t channel = group * task->outputs / task->groups, width, samples; channel < end; channel += width) {
        int64_t left = end - channel;
        void (*kernel)(const ConvolutionTask *, const Block *);
        SHAPES(TRY) return;
        for (int64_t at = start; at < stop; at += samples) {
            int64_t offset = (batch * task->outputs + channel) * task->length + at;
            Block block = {
                scratch + (at - start),
                task->weight + channel * task->inputs * task->taps,
                task->bias ? task->bias + channel : 0,
                task->residual ? task->residual + offset : 0,
                task->result + offset,
                (int)(stop - at < samples ? stop - at : samples),
            };
            kernel(task, &block);
        }
    }
}

TARGET static void NAME(convolve)(ConvolutionTask *task) {
    float *scratch = 0;
    for (int64_t piece = claim(&task->queue.next); piece < task->queue.pieces; piece = claim(&task->queue.next)) {
        if (!scratch) scratch = task->scratch + claim(&task->worker) * task->inputs * task->stride;
        NAME(convolve_piece)(task, piece, scratch);
    }
}

#undef VECTOR_TYPE
#undef LOOSE_TYPE
#undef KERNEL
#undef TRY
#undef LANES
#undef TARGET
#undef NAME
#undef SHAPES
