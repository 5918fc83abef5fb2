/* Convolution along time of the activated input: y = W * snake(x) + bias (+ residual).
 *
 * A piece of work is one tile of time of one batch entry and a group of output channels, mostly all: the activated tile
 * is made in the scratch of the thread (second-level cache), with zeros beyond the ends of the signal. Then a block of
 * output channels times several vectors of time is held in registers while all inputs and taps pass by; weights are read
 * as PyTorch stores them.
 */

#include <math.h>

#include "snake.h"

/* Added to the divisor of the activation, as in the published model. */
#define EPSILON 1e-9f

typedef struct {
    Queue queue;
    int64_t inputs; /* channels */
    int64_t outputs;
    int64_t length;
    int64_t taps;
    int64_t dilation;
    int64_t tile;   /* samples */
    int64_t tiles;  /* per batch entry */
    int64_t groups; /* of output channels: 1, or more where there are more threads than tiles */
    int64_t worker; /* the next number of a thread */
    int64_t stride; /* floats from one channel of the scratch to the next */
    int64_t logscale;      /* whether alpha and beta are logarithms */
    const float *alpha;    /* (inputs): frequency of the activation */
    const float *beta;     /* (inputs): divisor */
    const float *filter;   /* (12) */
    const float *x;        /* (batch, inputs, length) */
    const float *weight;   /* (outputs, inputs, taps) */
    const float *bias;     /* (outputs), or null */
    const float *residual; /* (batch, outputs, length), or null */
    float *result;         /* (batch, outputs, length) */
    float *scratch;        /* (threads, inputs, stride) */
} ConvolutionTask;

/* What one call of a register kernel works on: some output channels, `count` samples. */
typedef struct {
    const float *x; /* activated input of the first tap of the first sample */
    const float *weight;
    const float *bias;
    const float *residual;
    float *result;
    int count;
} Block;

/* The activated input of samples start - reach to stop + reach, all channels. */
INLINE void activate_tile(const ConvolutionTask *task, const float *x, int64_t start, int64_t stop, float *scratch) {
    int64_t reach = task->dilation * (task->taps - 1) / 2;
    int64_t first = start - reach, low = first < 0 ? 0 : first;
    int64_t high = stop + reach < task->length ? stop + reach : task->length;
    float f[12];
    memcpy(f, task->filter, sizeof f);
    for (int64_t channel = 0; channel < task->inputs; channel++) {
        float *row = scratch + channel * task->stride;
        float alpha = task->alpha[channel], beta = task->beta[channel];
        float frequency = task->logscale ? expf(alpha) : alpha;
        float magnitude = 1.0f / ((task->logscale ? expf(beta) : beta) + EPSILON);
        memset(row, 0, (size_t)(low - first) * sizeof(float));
        for (int64_t at = low; at < high; at += STRIP) {
            Strip strip = make_strip(at, at + STRIP < high ? at + STRIP : high, task->length);
            activate(x + channel * task->length, strip, frequency, magnitude, f, row + (at - first));
        }
        memset(row + (high - first), 0, (size_t)(task->stride - (high - first)) * sizeof(float));
    }
}

#if defined(__GNUC__)

#if HAS_TARGETS
#define LANES 16
#define TARGET TARGET_AVX512
#define NAME(name) name##_avx512
#define SHAPES(shape) shape(8, 3) shape(6, 4) shape(4, 6) shape(3, 8) shape(2, 8) shape(1, 8)
#include "convolution_variant.h"

#define LANES 8
#define TARGET TARGET_AVX2
#define NAME(name) name##_avx2
#define SHAPES(shape) shape(6, 2) shape(4, 3) shape(3, 3) shape(2, 5) shape(1, 8)
#include "convolution_variant.h"
#endif

#define LANES 4
#define TARGET
#define NAME(name) name##_baseline
#define SHAPES(shape) shape(6, 2) shape(4, 3) shape(3, 3) shape(2, 5) shape(1, 8)
#include "convolution_variant.h"

/* Floats that a scratch row needs beyond a tile with its reach: blocks and strips are computed in whole vectors. */
EXPORT int64_t convolution_slack(void) { return 8 * 16; }

/* Whether the processor has the instructions with which this was measured to be faster than PyTorch. */
EXPORT int64_t convolution_is_fast(void) { return instruction_set() >= AVX2; }

EXPORT void convolve_activated(void *task) {
#if HAS_TARGETS
    switch (instruction_set()) {
    case AVX512: convolve_avx512(task); return;
    case AVX2: convolve_avx2(task); return;
    case BASELINE: break;
    }
#endif
    convolve_baseline(task);
}

#else

EXPORT int64_t convolution_slack(void) { return 0; }
EXPORT int64_t convolution_is_fast(void) { return 0; }
EXPORT void convolve_activated(void *task) { (void)task; }

#endif
