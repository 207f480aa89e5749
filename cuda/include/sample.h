/* Launch constants and scalars of cuda/sample.cu. */
#ifndef PUNA_SAMPLE_H
#define PUNA_SAMPLE_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block, which has one row; candidates that are sorted at once. */
#define SAMPLE_THREADS 512
/* Rows of a launch: their settings travel in its arguments. */
#define SAMPLE_ROWS 64
/* Bits of a token's id: longer vocabularies are refused. */
#define SAMPLE_ID_BITS 20

/* What stands in place of a token: every logit was minus infinity; or, with the id of the first one
   in its lower bits, a logit was NaN or plus infinity. Ids are below both. */
#define SAMPLE_NOTHING_LEFT 0xffffffffu
#define SAMPLE_BAD_LOGIT 0x80000000u

/* How one row is sampled: infer::SamplerConfig and the draw. */
typedef struct SampleRow {
    /* In [0, 1). */
    double uniform;
    /* 0: greedy. */
    float temperature;
    /* 1: off. */
    float top_p;
    /* 0: off. */
    float min_p;
    /* 1: off. */
    float repetition_penalty;
    /* 0: off. */
    uint32_t top_k;
    uint32_t pad_;
} SampleRow;
PUNA_SIZE(SampleRow, 32);

typedef struct SampleParams {
    SampleRow rows[SAMPLE_ROWS];
    uint32_t vocab;
    uint32_t pad_;
} SampleParams;
PUNA_SIZE(SampleParams, 2056);

/* Threads of a block of sample_observe, one row each. */
#define SAMPLE_OBSERVE_THREADS 128

typedef struct SampleObserveParams {
    uint32_t rows;
    uint32_t vocab;
} SampleObserveParams;
PUNA_SIZE(SampleObserveParams, 8);

#endif
