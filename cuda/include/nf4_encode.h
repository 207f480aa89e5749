/* Launch constants and scalars of cuda/nf4_encode.cu. */
#ifndef PUNA_NF4_ENCODE_H
#define PUNA_NF4_ENCODE_H

#include <stdint.h>

#include "params_check.h"

/* A warp has a block of 64 weights, or a thread a byte of two codes. */
#define NF4_ENCODE_THREADS 256

typedef struct Nf4EncodeParams {
    /* Whole rows of the matrix, of which the first weight begins a block: [rows, cols]. */
    int64_t rows;
    int32_t cols;
    /* MATMUL_F32, MATMUL_BF16 or MATMUL_F16. */
    uint32_t type;
} Nf4EncodeParams;
PUNA_SIZE(Nf4EncodeParams, 16);

#endif
