/* Launch constants and scalars of cuda/embedding.cu. */
#ifndef PUNA_EMBEDDING_H
#define PUNA_EMBEDDING_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block, eight elements of one row each. */
#define EMBEDDING_THREADS 128

typedef struct EmbeddingParams {
    /* Elements of a row. */
    uint32_t dim;
    /* Rows of what `ids` index: the table, or for scatter_rows the output. */
    uint32_t n_rows;
    /* 1: arrays are 16-byte aligned and dim is a multiple of eight. */
    uint32_t wide;
} EmbeddingParams;
PUNA_SIZE(EmbeddingParams, 12);

#endif
