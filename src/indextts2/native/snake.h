/* Anti-aliased SnakeBeta of one strip of a row: up-sample by 2, u + m sin(f u)^2, down-sample by 2.
 *
 * The doubled rate exists only inside of a strip, as its two phases (even 2t, odd 2t+1), and never leaves the
 * first-level cache. Index i of a phase is the position start - MARGIN + i, index i of the input start - REACH + i.
 *
 * Source: BigVGAN (Lee et al., 2023); the same formulas as models/vocoder/activation.py.
 */

#ifndef INDEXTTS2_SNAKE_H
#define INDEXTTS2_SNAKE_H

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
    int64_t start;
    int64_t length; /* of the row */
    int count;      /* samples of this strip */
    int padded;     /* count + 2 * MARGIN, up to whole vectors */
} Strip;

/* At most STRIP samples. */
INLINE Strip make_strip(int64_t start, int64_t stop, int64_t length) {
    Strip strip;
    strip.start = start;
    strip.length = length;
    strip.count = (int)(stop - start);
    strip.padded = (strip.count + 2 * MARGIN + VECTOR - 1) / VECTOR * VECTOR;
    return strip;
}

/* Angle less a multiple of pi, within [-pi/2, pi/2]: pi in two parts, as exact as the rounding of the angle itself. */
INLINE float reduce_angle(float angle) {
    const float rounding = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float turns = (angle * 0.318309886f + rounding) - rounding;
    float rest = angle - turns * 3.1415927410125732f;
    return rest + turns * 8.742277657347586e-08f;
}

/* Polynomials in the square of the reduced angle: errors of 5e-9 and 4e-10 before rounding. Written so that few
 * operations wait for each other. */
INLINE float sine(float r, float w) {
    float low = -0.16666657114690378f + w * 0.008333017610538188f;
    float high = -0.000198066325816718f + w * 2.6000846717888493e-06f;
    return r + (r * w) * (low + (w * w) * high);
}

INLINE float cosine(float w) {
    float v = w * w;
    float low = 1.0f - 0.5f * w, middle = 0.041666655790266564f - w * 0.0013888569441379492f;
    float high = 2.4769318702802653e-05f - w * 2.6194054398198836e-07f;
    return low + v * (middle + v * high);
}

INLINE float snake(float u, float frequency, float magnitude) {
    float r = reduce_angle(u * frequency);
    float s = sine(r, r * r);
    /* Angles beyond 2^22 pi have no meaning in float32, but their sine must stay bounded. */
    float square = s * s < 1.0f ? s * s : 1.0f;
    return u + magnitude * square;
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
    return (f[0] * x[0] + f[2] * x[1] + f[4] * x[2]) + (f[6] * x[3] + f[8] * x[4] + f[10] * x[5]);
}

INLINE float up_odd(const float *RESTRICT x, const float *RESTRICT f) {
    return (f[1] * x[1] + f[3] * x[2] + f[5] * x[3]) + (f[7] * x[4] + f[9] * x[5] + f[11] * x[6]);
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

/* The filter for up-sampling: twice the gain, as every second sample is a zero put in between. */
INLINE void up_filter(const float *f, float *up) {
    for (int i = 0; i < 12; i++) up[i] = 2 * f[i];
}

/* The activation of a strip of the row `source`; `f` is the filter of 12 taps. */
INLINE void activate(const float *source, Strip strip, float frequency, float magnitude, const float *RESTRICT f,
                     float *RESTRICT result) {
    float x[BUFFER], even[BUFFER], odd[BUFFER], up[12];
    up_filter(f, up);
    load(source, strip, source[0], source[strip.length - 1], x);
    for (int i = 0; i < strip.padded; i++) {
        even[i] = snake(up_even(x + i, up), frequency, magnitude);
        odd[i] = snake(up_odd(x + i, up), frequency, magnitude);
    }
    /* The edges of the row, where the strip reaches them. */
    int64_t first = strip.start < MARGIN ? MARGIN - strip.start : 0;
    int64_t last = strip.length - 1 - strip.start + MARGIN;
    fill_outside(even, odd, strip, even[first], last < strip.padded ? odd[last] : 0.0f);
    for (int i = 0; i < strip.count; i++) result[i] = down(even + i, odd + i, f);
}

#endif
