/* Launch constants and scalars of cuda/optim.cu. */
#ifndef PUNA_OPTIM_H
#define PUNA_OPTIM_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block of the updates, eight elements each. */
#define OPTIM_THREADS 256
/* Threads of a block of the sums, and elements that such a block adds: a constant, so that the sum
   depends on the length alone. */
#define SQUARES_THREADS 256
#define SQUARES_CHUNK 16384

/* The factors of an update, formed in f64 and rounded once. */
typedef struct AdamWParams {
    uint64_t n;
    float grad_scale;
    /* 1 - lr weight_decay. */
    float keep;
    /* 1 - beta1, beta2, 1 - beta2. */
    float new1;
    float beta2;
    float new2;
    /* 1 / sqrt(bias_correction2). */
    float root;
    float eps;
    /* -lr / bias_correction1. */
    float step;
    /* 1: every array is 16-byte aligned. */
    uint32_t wide;
    uint32_t pad_;
} AdamWParams;
PUNA_SIZE(AdamWParams, 48);

typedef struct SgdParams {
    uint64_t n;
    float grad_scale;
    float decay;
    float momentum;
    /* -lr. */
    float step;
    uint32_t wide;
    uint32_t pad_;
} SgdParams;
PUNA_SIZE(SgdParams, 32);

typedef struct SquaresParams {
    /* Elements to add. */
    uint64_t n;
    uint32_t wide;
    uint32_t pad_;
} SquaresParams;
PUNA_SIZE(SquaresParams, 16);

#endif
