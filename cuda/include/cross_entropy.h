/* Launch constants and scalars of cuda/cross_entropy.cu. */
#ifndef PUNA_CROSS_ENTROPY_H
#define PUNA_CROSS_ENTROPY_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block; a block has one row. */
#define CROSS_ENTROPY_THREADS 512

typedef struct CrossEntropyParams {
    /* Logits of a row. */
    uint32_t vocab;
    /* 1: the logits are 16-byte aligned and vocab is a multiple of four. */
    uint32_t wide;
} CrossEntropyParams;
PUNA_SIZE(CrossEntropyParams, 8);

#endif
