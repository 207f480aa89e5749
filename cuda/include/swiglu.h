/* Launch constants and scalars of cuda/swiglu.cu. */
#ifndef PUNA_SWIGLU_H
#define PUNA_SWIGLU_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block, eight elements each. */
#define SWIGLU_THREADS 256

typedef struct SwiGluParams {
    /* Elements of each array. */
    uint64_t n;
    /* 1: every array is 16-byte aligned. */
    uint32_t wide;
    uint32_t pad_;
} SwiGluParams;
PUNA_SIZE(SwiGluParams, 16);

#endif
