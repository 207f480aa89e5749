/* Launch constants and scalars of cuda/elementwise.cu. */
#ifndef PUNA_ELEMENTWISE_H
#define PUNA_ELEMENTWISE_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block, eight elements each. */
#define ELEMENTWISE_THREADS 256
/* Columns of a block of bias_bwd_acc, and partial sums that it has under way at once: a warp has
   a partial sum of each column. */
#define BIAS_COLUMNS 32
#define BIAS_WARPS 16
/* Rows whose sum is formed first: a constant, so that the sum depends on the number of rows alone. */
#define BIAS_GRAD_ROWS 64

/* add_acc, convert, scale, fill. */
typedef struct ElementsParams {
    uint64_t n;
    /* scale: what x is multiplied with; fill: what is written. */
    float value;
    /* 1: every array is 16-byte aligned. */
    uint32_t wide;
} ElementsParams;
PUNA_SIZE(ElementsParams, 16);

/* Rows of x and one row. */
typedef struct BiasParams {
    uint64_t rows;
    uint32_t columns;
    /* 1: the arrays are 16-byte aligned and columns a multiple of eight. */
    uint32_t wide;
} BiasParams;
PUNA_SIZE(BiasParams, 16);

typedef struct DropoutParams {
    uint64_t n;
    /* Place of the first element in the mask. */
    uint64_t first;
    /* Which mask, spread over the bits. */
    uint64_t key;
    /* Elements whose hash is below are dropped. */
    uint32_t limit;
    /* What the others are multiplied with. */
    float factor;
    uint32_t wide;
    uint32_t pad_;
} DropoutParams;
PUNA_SIZE(DropoutParams, 40);

#endif
