/* Launch constants and scalars of cuda/lora.cu. */
#ifndef PUNA_LORA_H
#define PUNA_LORA_H

#include <stdint.h>

#include "matmul.h"

/* The fused kernel: outputs on a tile's side, threads, ranks that its instances have room for. */
#define LORA_TILE 128
#define LORA_THREADS 256
#define LORA_RANK_16 16
#define LORA_RANK_32 32
#define LORA_RANK_64 64
/* The kernels for adapters of any type: threads of a block; a warp has one output of the first
   product, a thread one of the second. */
#define LORA_ROW_THREADS 128

/* Rows of one adapter, at most LORA_TILE: rows[first .. first + count]. */
typedef struct LoraTile {
    /* Which of the stacked adapters; negative: none. */
    int32_t adapter;
    int32_t first;
    int32_t count;
    int32_t pad_;
} LoraTile;
PUNA_SIZE(LoraTile, 16);

typedef struct LoraParams {
    /* The product with the weight; alpha is 1. */
    MatmulParams product;
    /* Inner width of an adapter. */
    int32_t r;
    /* Tiles of rows. */
    int32_t tiles;
    /* Of the one adapter, where there is no list of scales. */
    float scale;
    uint32_t pad_;
} LoraParams;
PUNA_SIZE(LoraParams, 48);

typedef struct LoraRowsParams {
    /* x is [m, k], u [m, r], out [m, n]. */
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t r;
    /* MATMUL_OUT_BF16, MATMUL_A_VECTORS (of x), MATMUL_B_VECTORS (of the adapters). */
    uint32_t flags;
    /* Types of x and of the adapters. */
    uint32_t x_type;
    uint32_t adapter_type;
    uint32_t pad_;
} LoraRowsParams;
PUNA_SIZE(LoraRowsParams, 32);

#endif
