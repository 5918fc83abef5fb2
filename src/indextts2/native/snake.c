/* Anti-aliased SnakeBeta of whole tensors, forward and backward: one read and one write of every row.
 *
 * A piece of work is one strip of one row (batch, channel).
 */

#include "snake.h"

typedef struct {
    Queue queue;
    int64_t channels;
    int64_t length;
    int64_t strips;
    const float *frequency; /* (channels) */
    const float *magnitude; /* (channels) */
    const float *filter;    /* (12) */
    const float *x;         /* (rows, length) */
    const float *gradient;  /* (rows, length), by the output; backward only */
    float *result;          /* (rows, length): the output, or the gradient by x */
    double *partial;        /* (rows, strips, 2): gradients by frequency and magnitude; backward only */
} SnakeTask;

/* Strips of equal length (to within one): none is so short that the edges of the row concern two of them. */
INLINE Strip strip_at(const SnakeTask *task, int64_t index) {
    return make_strip(index * task->length / task->strips, (index + 1) * task->length / task->strips, task->length);
}

INLINE void forward_strip(const SnakeTask *task, int64_t row, int64_t index) {
    float f[12];
    Strip strip = strip_at(task, index);
    int64_t offset = row * task->length, channel = row % task->channels;
    memcpy(f, task->filter, sizeof f);
    activate(task->x + offset, strip, task->frequency[channel], task->magnitude[channel], f,
             task->result + offset + strip.start);
}

/* Adjoint of `down`: gradients by the phases; index i of a phase is index i + MARGIN of `g`. */
INLINE void down_adjoint(const float *RESTRICT g, const float *RESTRICT f, int n, float *RESTRICT even,
                         float *RESTRICT odd) {
    for (int i = 0; i < n; i++) {
        const float *at = g + i;
        even[i] = f[11] * at[0] + f[9] * at[1] + f[7] * at[2] + f[5] * at[3] + f[3] * at[4] + f[1] * at[5];
        odd[i] = f[10] * at[1] + f[8] * at[2] + f[6] * at[3] + f[4] * at[4] + f[2] * at[5] + f[0] * at[6];
    }
}

/* Gradients by the replicated activated samples belong to the edge samples of the row. */
INLINE void fold_phases(float *even, float *odd, Strip strip) {
    if (strip.start == 0)
        for (int i = 0; i < MARGIN; i++) even[MARGIN] += even[i] + odd[i];
    if (strip.start + strip.count == strip.length)
        for (int i = 0; i < MARGIN; i++) {
            int outside = strip.count + MARGIN + i;
            odd[strip.count + MARGIN - 1] += even[outside] + odd[outside];
        }
}

/* Gradient by x at one position; `even` and `odd` hold the gradients by u around it. */
INLINE float up_adjoint(const float *RESTRICT even, const float *RESTRICT odd, const float *RESTRICT f) {
    float a = f[10] * even[1] + f[8] * even[2] + f[6] * even[3] + f[4] * even[4] + f[2] * even[5] + f[0] * even[6];
    float b = f[11] * odd[0] + f[9] * odd[1] + f[7] * odd[2] + f[5] * odd[3] + f[3] * odd[4] + f[1] * odd[5];
    return a + b;
}

/* Gradients by the replicated input samples: the sums over the positions outside on either side of the row. */
INLINE void fold_samples(const float *even, const float *odd, const float *f, Strip strip, float *result) {
    float padded[2][4 * REACH] = {{0}};
    if (strip.start == 0) {
        int count = strip.count < REACH ? strip.count : REACH;
        memcpy(padded[0] + REACH, even + MARGIN, (size_t)count * sizeof(float));
        memcpy(padded[1] + REACH, odd + MARGIN, (size_t)count * sizeof(float));
        for (int i = 0; i < MARGIN; i++) result[0] += up_adjoint(padded[0] + i, padded[1] + i, f);
    }
    if (strip.start + strip.count == strip.length) {
        int count = strip.count < REACH ? strip.count : REACH, first = strip.count + MARGIN - count;
        memset(padded, 0, sizeof padded);
        memcpy(padded[0] + REACH - count, even + first, (size_t)count * sizeof(float));
        memcpy(padded[1] + REACH - count, odd + first, (size_t)count * sizeof(float));
        for (int i = 0; i < MARGIN; i++)
            result[strip.count - 1] += up_adjoint(padded[0] + MARGIN + i, padded[1] + MARGIN + i, f);
    }
}

typedef struct {
    float by_input, by_frequency, by_magnitude;
} Slopes;

/* Where no angle is left after the reduction (beyond 2^22 pi), the slopes stay bounded. */
#define HALF_PI 1.5707964f

/* Gradients of the activation at `u`, times the gradient `g` by its output; that by frequency lacks the magnitude. */
INLINE Slopes snake_slopes(float u, float g, float frequency, float magnitude) {
    Slopes slopes;
    float r = reduce_angle(u * frequency);
    r = r < HALF_PI ? r : HALF_PI;
    r = r > -HALF_PI ? r : -HALF_PI;
    float w = r * r, s = sine(r, w);
    float slope = 2 * g * (s * cosine(w));
    slopes.by_input = g + slope * (frequency * magnitude);
    slopes.by_frequency = slope * u;
    slopes.by_magnitude = g * (s * s);
    return slopes;
}

INLINE double sum(const float *RESTRICT values, int n) {
    float lanes[VECTOR] = {0};
    double total = 0;
    for (int i = 0; i < n; i += VECTOR)
        for (int lane = 0; lane < VECTOR; lane++) lanes[lane] += values[i + lane];
    for (int lane = 0; lane < VECTOR; lane++) total += lanes[lane];
    return total;
}

INLINE void backward_strip(const SnakeTask *task, int64_t row, int64_t index) {
    float x[BUFFER], g[BUFFER], even[BUFFER], odd[BUFFER], by_frequency[BUFFER], by_magnitude[BUFFER], f[12], up[12];
    Strip strip = strip_at(task, index);
    const float *source = task->x + row * task->length;
    float *RESTRICT result = task->result + row * task->length + strip.start;
    float frequency = task->frequency[row % task->channels], magnitude = task->magnitude[row % task->channels];
    memcpy(f, task->filter, sizeof f);
    up_filter(f, up);
    load(source, strip, source[0], source[strip.length - 1], x);
    load(task->gradient + row * task->length, strip, 0, 0, g);
    down_adjoint(g, f, strip.padded, even, odd);
    fold_phases(even, odd, strip);
    for (int i = 0; i < strip.padded; i++) {
        Slopes a = snake_slopes(up_even(x + i, up), even[i], frequency, magnitude);
        Slopes b = snake_slopes(up_odd(x + i, up), odd[i], frequency, magnitude);
        even[i] = a.by_input;
        odd[i] = b.by_input;
        by_frequency[i] = a.by_frequency + b.by_frequency;
        by_magnitude[i] = a.by_magnitude + b.by_magnitude;
    }
    fill_outside(even, odd, strip, 0, 0);
    for (int i = 0; i < strip.count; i++) result[i] = up_adjoint(even + i, odd + i, up);
    fold_samples(even, odd, up, strip, result);
    /* The margins are counted by the neighbouring strips. */
    for (int i = 0; i < MARGIN; i++) by_frequency[i] = by_magnitude[i] = 0;
    for (int i = strip.count + MARGIN; i < strip.padded; i++) by_frequency[i] = by_magnitude[i] = 0;
    double *partial = task->partial + 2 * (row * task->strips + index);
    partial[0] = magnitude * sum(by_frequency, strip.padded);
    partial[1] = sum(by_magnitude, strip.padded);
}

#define PIECES(name, target, strip_function)                                                                       \
    target static void name(SnakeTask *task) {                                                                     \
        for (int64_t piece = claim(&task->queue.next); piece < task->queue.pieces; piece = claim(&task->queue.next))         \
            strip_function(task, piece / task->strips, piece % task->strips);                                      \
    }

PIECES(forward_baseline, , forward_strip)
PIECES(backward_baseline, , backward_strip)
#if HAS_TARGETS
PIECES(forward_avx2, TARGET_AVX2, forward_strip)
PIECES(backward_avx2, TARGET_AVX2, backward_strip)
PIECES(forward_avx512, TARGET_AVX512, forward_strip)
PIECES(backward_avx512, TARGET_AVX512, backward_strip)
#endif

/* Strips of one row of that many samples: the pieces are rows times strips. */
EXPORT int64_t snake_strips(int64_t length) { return (length + STRIP - 1) / STRIP; }

EXPORT void snake_forward(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: forward_avx512(task); return;
    case AVX2: forward_avx2(task); return;
    case BASELINE: break;
    }
#endif
    forward_baseline(task);
}

EXPORT void snake_backward(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: backward_avx512(task); return;
    case AVX2: backward_avx2(task); return;
    case BASELINE: break;
    }
#endif
    backward_baseline(task);
}
