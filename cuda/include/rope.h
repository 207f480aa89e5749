/* Launch constants and scalars of cuda/rope.cu. */
#ifndef PUNA_ROPE_H
#define PUNA_ROPE_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block; the blocks of grid row x have pairs of row x. */
#define ROPE_THREADS 256
/* Pairs of a thread where memory is aligned, else 1. */
#define ROPE_PAIRS 8

typedef struct RopeParams {
    uint32_t n_heads;
    uint32_t head_dim;
    /* Pairs of a head: angles of a row. At most head_dim / 2. */
    uint32_t half;
    /* 1: rotated forth; -1: back. */
    float sign;
    /* 1: x, cos and sin are 16-byte aligned, half and head_dim multiples of ROPE_PAIRS. */
    uint32_t wide;
} RopeParams;
PUNA_SIZE(RopeParams, 20);

#endif
