/* Anti-aliased SnakeBeta: up-sample by 2, u + m sin(f u)^2, down-sample by 2; forward and backward.
 *
 * A piece is one strip of one row (batch, channel). The doubled rate exists only inside of a strip, as its two phases
 * (even 2t, odd 2t+1), and never leaves the first-level cache: one read and one write of the row.
 * Index i of a phase is the position start - MARGIN + i, index i of `x` and `g` is start - REACH + i.
 *
 * Source: BigVGAN (Lee et al., 2023); the same formulas as models/vocoder/activation.py.
 */

#include <string.h>

#include "kernels.h"

#define STRIP 1024
/* Positions of the phases that the filters read beyond either end of a strip, and samples that those depend on. */
#define MARGIN 3
#define REACH 6
/* Buffers are filled up to whole vectors, so that no loop over the phases has a remainder. */
#define VECTOR 16
#define BUFFER (STRIP + 2 * REACH + 2 * VECTOR)

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

typedef struct {
    int64_t start;
    int64_t length; /* of the row */
    int count;      /* samples of this strip */
    int padded;     /* count + 2 * MARGIN, up to whole vectors */
} Strip;

/* Angle less a multiple of pi, within [-pi/2, pi/2]: pi in three parts, the first two exact times any such multiple. */
INLINE float reduce_angle(float angle) {
    const float rounding = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float turns = (angle * 0.318309886f + rounding) - rounding;
    float rest = angle - turns * 3.140625f;
    rest = rest - turns * 9.675025939941406e-4f;
    rest = rest - turns * 1.5099580252808664e-7f;
    /* Angles beyond 2^22 pi have no meaning in float32, but must stay bounded. */
    rest = rest < 1.5707964f ? rest : 1.5707964f;
    return rest > -1.5707964f ? rest : -1.5707964f;
}

/* Polynomials in the square of the reduced angle: errors of 5e-9 and 4e-10 before rounding. */
INLINE float sine(float r, float w) {
    float p = -0.000198066325816718f + w * 2.6000846717888493e-06f;
    p = 0.008333017610538188f + w * p;
    p = -0.16666657114690378f + w * p;
    return r + r * (w * p);
}

INLINE float cosine(float w) {
    float p = 2.4769318702802653e-05f - w * 2.6194054398198836e-07f;
    p = -0.0013888569441379492f + w * p;
    p = 0.041666655790266564f + w * p;
    p = -0.5f + w * p;
    return 1.0f + w * p;
}

INLINE float snake(float u, float frequency, float magnitude) {
    float r = reduce_angle(u * frequency);
    float s = sine(r, r * r);
    return u + magnitude * (s * s);
}

INLINE Strip strip_at(const SnakeTask *task, int64_t index) {
    Strip strip;
    /* Strips of equal length (to within one): none is so short that the edges of the row concern two of them. */
    strip.start = index * task->length / task->strips;
    strip.length = task->length;
    strip.count = (int)((index + 1) * task->length / task->strips - strip.start);
    strip.padded = (strip.count + 2 * MARGIN + VECTOR - 1) / VECTOR * VECTOR;
    return strip;
}

/* Samples start - REACH ... of a row, with `before` and `after` in place of those beyond its ends. */
INLINE void load(const float *RESTRICT row, Strip strip, float before, float after, float *RESTRICT to) {
    int64_t first = strip.start - REACH, last = strip.start + strip.count + REACH;
    int low = first < 0 ? (int)-first : 0;
    int high = (int)((last < strip.length ? last : strip.length) - first);
    int end = strip.padded + REACH + 1;
    for (int i = 0; i < low; i++) to[i] = before;
    memcpy(to + low, row + first + low, (size_t)(high - low) * sizeof(float));
    for (int i = high; i < end; i++) to[i] = after;
}

INLINE float up_even(const float *RESTRICT x, const float *RESTRICT f) {
    return 2 * (f[0] * x[0] + f[2] * x[1] + f[4] * x[2] + f[6] * x[3] + f[8] * x[4] + f[10] * x[5]);
}

INLINE float up_odd(const float *RESTRICT x, const float *RESTRICT f) {
    return 2 * (f[1] * x[1] + f[3] * x[2] + f[5] * x[3] + f[7] * x[4] + f[9] * x[5] + f[11] * x[6]);
}

INLINE float down(const float *RESTRICT even, const float *RESTRICT odd, const float *RESTRICT f) {
    float a = f[1] * even[1] + f[3] * even[2] + f[5] * even[3] + f[7] * even[4] + f[9] * even[5] + f[11] * even[6];
    float b = f[0] * odd[0] + f[2] * odd[1] + f[4] * odd[2] + f[6] * odd[3] + f[8] * odd[4] + f[10] * odd[5];
    return a + b;
}

/* Phases beyond the ends of the row: the activated edge samples (or, for gradients, zero). */
INLINE void fill_outside(float *even, float *odd, Strip strip, float before, float after) {
    int low = strip.start < MARGIN ? (int)(MARGIN - strip.start) : 0;
    int64_t inside = strip.length - strip.start + MARGIN;
    for (int i = 0; i < low; i++) even[i] = odd[i] = before;
    for (int64_t i = inside; i < strip.padded; i++) even[i] = odd[i] = after;
}

INLINE void forward_strip(const SnakeTask *task, int64_t row, int64_t index) {
    float x[BUFFER], even[BUFFER], odd[BUFFER], f[12];
    Strip strip = strip_at(task, index);
    const float *source = task->x + row * task->length;
    float *RESTRICT result = task->result + row * task->length + strip.start;
    float frequency = task->frequency[row % task->channels], magnitude = task->magnitude[row % task->channels];
    memcpy(f, task->filter, sizeof f);
    load(source, strip, source[0], source[strip.length - 1], x);
    for (int i = 0; i < strip.padded; i++) {
        even[i] = snake(up_even(x + i, f), frequency, magnitude);
        odd[i] = snake(up_odd(x + i, f), frequency, magnitude);
    }
    /* The edges of the row lie in the strips that reach them. */
    int64_t last = strip.length - 1 - strip.start + MARGIN;
    fill_outside(even, odd, strip, even[MARGIN], last < strip.padded ? odd[last] : 0.0f);
    for (int i = 0; i < strip.count; i++) result[i] = down(even + i, odd + i, f);
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
    return 2 * (a + b);
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

/* Gradients of the activation at `u`, times the gradient `g` by its output; that by frequency lacks the magnitude. */
INLINE Slopes snake_slopes(float u, float g, float frequency, float magnitude) {
    Slopes slopes;
    float r = reduce_angle(u * frequency), w = r * r;
    float s = sine(r, w);
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
    float x[BUFFER], g[BUFFER], even[BUFFER], odd[BUFFER], by_frequency[BUFFER], by_magnitude[BUFFER], f[12];
    Strip strip = strip_at(task, index);
    const float *source = task->x + row * task->length;
    float *RESTRICT result = task->result + row * task->length + strip.start;
    float frequency = task->frequency[row % task->channels], magnitude = task->magnitude[row % task->channels];
    memcpy(f, task->filter, sizeof f);
    load(source, strip, source[0], source[strip.length - 1], x);
    load(task->gradient + row * task->length, strip, 0, 0, g);
    down_adjoint(g, f, strip.padded, even, odd);
    fold_phases(even, odd, strip);
    for (int i = 0; i < strip.padded; i++) {
        Slopes a = snake_slopes(up_even(x + i, f), even[i], frequency, magnitude);
        Slopes b = snake_slopes(up_odd(x + i, f), odd[i], frequency, magnitude);
        even[i] = a.by_input;
        odd[i] = b.by_input;
        by_frequency[i] = a.by_frequency + b.by_frequency;
        by_magnitude[i] = a.by_magnitude + b.by_magnitude;
    }
    fill_outside(even, odd, strip, 0, 0);
    for (int i = 0; i < strip.count; i++) result[i] = up_adjoint(even + i, odd + i, f);
    fold_samples(even, odd, f, strip, result);
    /* The margins are counted by the neighbouring strips. */
    for (int i = 0; i < MARGIN; i++) by_frequency[i] = by_magnitude[i] = 0;
    for (int i = strip.count + MARGIN; i < strip.padded; i++) by_frequency[i] = by_magnitude[i] = 0;
    double *partial = task->partial + 2 * (row * task->strips + index);
    partial[0] = magnitude * sum(by_frequency, strip.padded);
    partial[1] = sum(by_magnitude, strip.padded);
}

#define PIECES(name, target, strip_function)                                                                       \
    target static void name(SnakeTask *task) {                                                                     \
        for (int64_t piece = claim(&task->queue); piece < task->queue.pieces; piece = claim(&task->queue))         \
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
