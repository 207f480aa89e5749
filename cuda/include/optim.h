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

/* One of the tensors that a launch updates or sums: eight words. */
typedef struct OptimTensor {
    /* Elements, at least one. */
    uint64_t n;
    /* Blocks of the launch before its first. */
    uint64_t first;
    /* 1: every array is 16-byte aligned. */
    uint64_t wide;
    /* Addresses: weights, their bf16 roundings (0: none), first moment or momentum (0: none), second
       moment, gradient. A sum reads the last alone. */
    uint64_t w;
    uint64_t low;
    uint64_t m;
    uint64_t v;
    uint64_t g;
} OptimTensor;
PUNA_SIZE(OptimTensor, 64);

/* The factors of an update, formed in f64 and rounded once. */
typedef struct AdamWParams {
    /* Tensors of the launch. */
    uint32_t tensors;
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
    uint32_t pad_;
} AdamWParams;
PUNA_SIZE(AdamWParams, 40);

typedef struct SgdParams {
    uint32_t tensors;
    float grad_scale;
    float decay;
    float momentum;
    /* -lr. */
    float step;
    uint32_t pad_;
} SgdParams;
PUNA_SIZE(SgdParams, 24);

typedef struct SquaresParams {
    /* Tensors of the launch. */
    uint32_t tensors;
    uint32_t pad_;
} SquaresParams;
PUNA_SIZE(SquaresParams, 8);

typedef struct TotalParams {
    /* Sums to add. */
    uint64_t n;
} TotalParams;
PUNA_SIZE(TotalParams, 8);

#endif
