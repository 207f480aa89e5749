/* Launch constants and scalars of cuda/matmul_*.cu, cuda/skinny.cu and cuda/matvec.cu. */
#ifndef PUNA_MATMUL_H
#define PUNA_MATMUL_H

#include <stdint.h>

#include "params_check.h"

/* What a factor's numbers are stored as. */
#define MATMUL_F32 0
#define MATMUL_BF16 1
#define MATMUL_F16 2

/* Tiles of the tensor-core kernels: outputs on a side, inputs of a stage, stages of the ring that
   copies fill ahead of the multiplication, threads of a block. */
#define MATMUL_LARGE 128
#define MATMUL_SMALL 64
#define MATMUL_BK 32
#define MATMUL_STAGES 4
#define MATMUL_THREADS 128
/* Bytes of shared memory: both factors' tiles, bf16, in every stage. */
#define MATMUL_LARGE_BYTES (MATMUL_STAGES * 2 * MATMUL_LARGE * MATMUL_BK * 2)
#define MATMUL_SMALL_BYTES (MATMUL_STAGES * 2 * MATMUL_SMALL * MATMUL_BK * 2)
/* The kernels for factors of any type and alignment: two stages of the small tile. */
#define MATMUL_ANY_BYTES (2 * 2 * MATMUL_SMALL * MATMUL_BK * 2)
/* Tiles of rows that a group of neighbouring blocks shares: they read the same columns of b, which
   then stay in the second-level cache. */
#define MATMUL_GROUP 8

/* The kernels for compute capability 9.0: outputs, inputs of a stage, stages, threads: a warp group
   that copies and two that multiply. */
#define WGMMA_BM 128
#define WGMMA_BN 256
#define WGMMA_BK 64
#define WGMMA_STAGES 4
#define WGMMA_THREADS 384
#define WGMMA_BYTES (1024 + WGMMA_STAGES * (WGMMA_BM + WGMMA_BN) * WGMMA_BK * 2)

/* Tiles of the f32 kernels: 8 x 8 outputs a thread in the large one, 8 x 4 in the small one. Rows
   in shared memory are longer than a tile by the pad, so that copies meet different banks. */
#define MATMUL_F32_BK 16
#define MATMUL_F32_PAD 4
#define MATMUL_F32_LARGE_THREADS 256
#define MATMUL_F32_SMALL_THREADS 128
#define MATMUL_F32_LARGE_BYTES (2 * 2 * MATMUL_F32_BK * (MATMUL_LARGE + MATMUL_F32_PAD) * 4)
#define MATMUL_F32_SMALL_BYTES (2 * 2 * MATMUL_F32_BK * (MATMUL_SMALL + MATMUL_F32_PAD) * 4)

/* The skinny kernels: rows of x at most, columns a warp, inputs of a stage, stages of the ring; an
   f32 row of x is longer than a stage by the pad. */
#define SKINNY_ROWS 16
#define SKINNY_COLS 8
#define SKINNY_BK 128
#define SKINNY_STAGES 4
#define SKINNY_PAD 8
/* Warps of a block where the product has many columns, and where it has few. */
#define SKINNY_WIDE 4
#define SKINNY_NARROW 1

/* The matrix-vector kernels: threads of a block, inputs that a thread reads at once, rows of x at
   most, columns of a block by the rows of x that its registers have room for. */
#define MATVEC_THREADS 128
#define MATVEC_CHUNK 8
#define MATVEC_ROWS 16
#define MATVEC_COLS_1 4
#define MATVEC_COLS_4 4
#define MATVEC_COLS_8 2
#define MATVEC_COLS_16 2

/* Flags. */
#define MATMUL_ACC 1       /* add to the output */
#define MATMUL_OUT_BF16 2  /* the output is bf16, else f32 */
#define MATMUL_BIAS_BF16 4 /* the bias is bf16, else f32 */
#define MATMUL_PAIRS 8     /* two neighbouring outputs may be stored at once */
#define MATMUL_A_VECTORS 16 /* 8 elements of a stored row of a may be read at once */
#define MATMUL_B_VECTORS 32 /* the same for b, and for its companion in a gated product */
#define MATMUL_A_TRANSPOSED 64 /* f32 kernels only; the others are instances */
#define MATMUL_B_TRANSPOSED 128
#define MATMUL_CHUNKS 256 /* 16 bytes of a row of the output may be moved at once */

typedef struct MatmulParams {
    /* The output is [m, n]; k inputs are summed over, then k2 of a second pair of factors. */
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t k2;
    float alpha;
    uint32_t flags;
    /* Element types, for the kernels that take several. */
    uint32_t a_type;
    uint32_t b_type;
} MatmulParams;
PUNA_SIZE(MatmulParams, 32);

#endif
