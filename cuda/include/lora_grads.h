/* Launch constants and scalars of cuda/lora_grads.cu. */
#ifndef PUNA_LORA_GRADS_H
#define PUNA_LORA_GRADS_H

#include <stdint.h>

#include "matmul.h"

/* Columns of x or dy that a block has, its threads, and the rows of a part, of which it has one. */
#define LORA_GRADS_TILE 128
#define LORA_GRADS_THREADS 128
#define LORA_GRADS_ROWS 512
/* Threads of a block of the kernel that adds the parts. */
#define LORA_GRADS_SUM_THREADS 256

typedef struct LoraGradsParams {
    /* x is [m, k], dy [m, n], du and u [m, r]. */
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t r;
    /* MATMUL_F32 or MATMUL_BF16: of du, and of u. */
    uint32_t du_type;
    uint32_t u_type;
    /* s. */
    float scale;
    uint32_t pad_;
} LoraGradsParams;
PUNA_SIZE(LoraGradsParams, 32);

#endif
