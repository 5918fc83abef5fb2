/* The softmax of one row. Included for each instruction set, before what uses it: LANES floats a vector, TARGET and NAME.
 */

#define VECTOR_TYPE NAME(SoftmaxVector)
#define LOOSE_TYPE NAME(LooseSoftmaxVector)
#define BITS_TYPE NAME(SoftmaxBits)

typedef float VECTOR_TYPE __attribute__((vector_size(4 * LANES)));
typedef int32_t BITS_TYPE __attribute__((vector_size(4 * LANES)));
/* The same anywhere in memory. */
typedef float LOOSE_TYPE __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

TARGET INLINE VECTOR_TYPE NAME(larger)(VECTOR_TYPE a, VECTOR_TYPE b) {
    BITS_TYPE mask = a > b;
    return (VECTOR_TYPE)(((BITS_TYPE)a & mask) | ((BITS_TYPE)b & ~mask));
}

/* Exponentials of less than this, which float32 holds no longer in full, are zero. */
#define SMALLEST_EXPONENT -87.0f

/* exp(x) of x <= 0: 2^n times a polynomial in the rest within [-ln(2) / 2, ln(2) / 2], whose error is 3e-9. */
TARGET INLINE VECTOR_TYPE NAME(exponential)(VECTOR_TYPE x) {
    const float rounding = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which the lowest bits hold */
    VECTOR_TYPE shifted = x * 1.44269504f + rounding;
    VECTOR_TYPE n = shifted - rounding;
    VECTOR_TYPE r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VECTOR_TYPE p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    VECTOR_TYPE power = (VECTOR_TYPE)(((BITS_TYPE)shifted << 23) + (127 << 23));
    return (VECTOR_TYPE)((BITS_TYPE)(p * power) & ~(x < SMALLEST_EXPONENT));
}

/* The largest of `whole` numbers and `last`, by several that do not wait for each other. */
TARGET INLINE float NAME(largest)(const float *x, int64_t whole, VECTOR_TYPE last) {
    VECTOR_TYPE most[4] = {last, last, last, last};
    int64_t i = 0;
    for (; i + 4 * LANES <= whole; i += 4 * LANES)
        _Pragma("GCC unroll 4") for (int part = 0; part < 4; part++)
            most[part] = NAME(larger)(*(const LOOSE_TYPE *)(x + i + part * LANES), most[part]);
    for (; i < whole; i += LANES) most[0] = NAME(larger)(*(const LOOSE_TYPE *)(x + i), most[0]);
    VECTOR_TYPE all = NAME(larger)(NAME(larger)(most[0], most[1]), NAME(larger)(most[2], most[3]));
    float result = all[0];
    for (int lane = 1; lane < LANES; lane++) result = all[lane] > result ? all[lane] : result;
    return result;
}

TARGET static void NAME(softmax_row)(float *x, int64_t columns) {
    int64_t whole = columns / LANES * LANES;
    size_t rest = (size_t)(columns - whole) * sizeof(float);
    VECTOR_TYPE last = (VECTOR_TYPE){0} - INFINITY, sums = {0};
    memcpy(&last, x + whole, rest);
    float largest = NAME(largest)(x, whole, last), sum = 0.0f;
    for (int64_t i = 0; i < whole; i += LANES) {
        VECTOR_TYPE value = NAME(exponential)(*(const LOOSE_TYPE *)(x + i) - largest);
        *(LOOSE_TYPE *)(x + i) = value;
        sums += value;
    }
    last = NAME(exponential)(last - largest);
    sums += last;
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    float scale = 1.0f / sum;
    for (int64_t i = 0; i < whole; i += LANES) *(LOOSE_TYPE *)(x + i) *= scale;
    last *= scale;
    memcpy(x + whole, &last, rest);
}

#undef VECTOR_TYPE
#undef LOOSE_TYPE
#undef BITS_TYPE
#undef SMALLEST_EXPONENT
