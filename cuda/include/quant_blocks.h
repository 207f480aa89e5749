/* Quantised weights as the device holds them, and the scalars of cuda/quant_*.cu.

   A matrix [n, k] is one of the formats below. Its rows are cut into chunks of 32 weights, and its
   bits lie in up to four planes, each [n, stride] bytes with a stride of whole 16 bytes (4 for what
   has 4 bytes a unit), so that neighbouring threads read neighbouring words whatever the size of a
   file's block. The launcher rearranges files' blocks, and NF4's codes, as it uploads them
   (src/cuda/quant/planes.rs); no bit is added or lost but for 6-bit scales, which become bytes.

   Codes. A chunk's weights i = 8 p + 2 t + e belong to word t (0 to 3), pair p (0 to 3), e being 0
   or 1: what lane t of a quad holds of a fragment B of mma.m16n8k16. One word of a plane has, in
   its byte p, the bits of pair p:

     plane      word t of ..       bits of byte p
     4 bits     a chunk            0: e = 0      4: e = 1
     8 bits     a chunk, 2 words   first word: e = 0      second: e = 1
     2 bits     two chunks         4 (chunk % 2): e = 0    2 more: e = 1
     1 bit      four chunks        2 (chunk % 4): e = 0    1 more: e = 1

   Scales are f16 pairs, bytes or f32, by format. A weight of the code q is, in f32,

     format             codes       weight               scale's plane, a chunk     plane of supers
     Q4_0               4           (q - 8) d            f16 d                      -
     Q4_1               4           q d + m              f16 d, m                   -
     Q5_0, Q5_1         4 + 1       as Q4_0 (16), Q4_1   as those                   -
     Q8_0               8           (q - 128) d          f16 d                      -
     Q4_K, Q5_K         4, 4 + 1    d s q - dmin m       bytes s, m                 f16 d, dmin
     Q2_K               2           d s q - dmin m       16 weights a byte: s, m    f16 d, dmin
     Q3_K               2 + 1       d s (q - 4)          16 weights an int8 s       f16 d, 0
     Q6_K               4 + 2       d s (q - 32)         16 weights an int8 s       f16 d, 0
     NF4                4           CODE[q] s            f32 s of 64 weights        -
     NF4, double        4           CODE[q] s            byte of 64 weights         f32, below
     NF4, ragged        4           CODE[q] s            f32 s, flat                -

   supers are those of 256 weights. Doubly quantised scales are NESTED_CODE[byte] largest + offset,
   and their supers one f32 `largest` for 256 blocks of the flat matrix. Where k is no multiple of
   64, NF4's blocks begin inside rows: scales are then the flat matrix' f32 ones (also of what was
   quantised doubly), rows of codes are filled up with codes of zero. */
#ifndef PUNA_QUANT_BLOCKS_H
#define PUNA_QUANT_BLOCKS_H

#include <stdint.h>

#include "matmul.h"

#define QUANT_NF4 0
#define QUANT_NF4_DOUBLE 1
#define QUANT_NF4_RAGGED 2
#define QUANT_Q4_0 3
#define QUANT_Q4_1 4
#define QUANT_Q5_0 5
#define QUANT_Q5_1 6
#define QUANT_Q8_0 7
#define QUANT_Q2_K 8
#define QUANT_Q3_K 9
#define QUANT_Q4_K 10
#define QUANT_Q5_K 11
#define QUANT_Q6_K 12
#define QUANT_FORMATS 13

/* Weights of a chunk, of a unit (what the skinny kernels copy at once), and of an NF4 block. */
#define QUANT_CHUNK 32
#define QUANT_UNIT 256
#define QUANT_NF4_BLOCK 64
/* NF4 scales that share a `largest`. */
#define QUANT_NESTED 256

/* Tables in shared memory: NF4's codes and those of its scales, f32. */
#define QUANT_TABLE_BYTES ((16 + 256) * 4)
/* The tiled kernels' dynamic shared memory. */
#define QUANT_LARGE_BYTES (MATMUL_LARGE_BYTES + QUANT_TABLE_BYTES)
#define QUANT_SMALL_BYTES (MATMUL_SMALL_BYTES + QUANT_TABLE_BYTES)
#define QUANT_F32_BYTES (MATMUL_F32_SMALL_BYTES + QUANT_TABLE_BYTES)

/* The skinny kernels: stages of the ring, warps of a block, bytes of zeros that stand for the rows
   that x lacks, elements that rows of x are longer than a unit by. */
#define QUANT_SKINNY_STAGES 5
#define QUANT_SKINNY_WARPS 4
#define QUANT_SKINNY_ZEROS 16
#define QUANT_SKINNY_PAD 8

/* What a warp of the skinny kernels has of a stage in shared memory, by format. */
#define QUANT_SKINNY_NF4 1280
#define QUANT_SKINNY_NF4_DOUBLE 1248
#define QUANT_SKINNY_Q4_0 1280
#define QUANT_SKINNY_Q4_1 1536
#define QUANT_SKINNY_Q5_0 1664
#define QUANT_SKINNY_Q5_1 1920
#define QUANT_SKINNY_Q8_0 2432
#define QUANT_SKINNY_Q2_K 800
#define QUANT_SKINNY_Q3_K 1184
#define QUANT_SKINNY_Q4_K 1312
#define QUANT_SKINNY_Q5_K 1696
#define QUANT_SKINNY_Q6_K 1952

/* Threads of the kernels over rows: look-up, and rounding of x. */
#define QUANT_ROW_THREADS 128

typedef struct QuantParams {
    /* Sizes of the product, as ever: for x W^T n and k are the weights', for dy W the other way. */
    MatmulParams product;
    /* The matrix' rows and the weights of a row. */
    int32_t rows;
    int32_t cols;
    /* Bytes between the rows of each plane. */
    uint32_t code_stride;
    uint32_t high_stride;
    uint32_t scale_stride;
    uint32_t super_stride;
    /* What is added to doubly quantised scales: of the matrix, and of a gated product's second. */
    float offset;
    float offset3;
    /* For kernels that take any format. */
    uint32_t format;
    uint32_t pad_;
} QuantParams;
PUNA_SIZE(QuantParams, 72);

typedef struct RoundParams {
    /* x [rows, cols] of the type; out rows are `width` long, what is behind `cols` zero. */
    int64_t rows;
    int32_t cols;
    int32_t width;
    uint32_t type;
    /* 1: 8 elements of x may be read at once. */
    uint32_t vectors;
} RoundParams;
PUNA_SIZE(RoundParams, 24);

#endif
