/* Launch constants and scalars of cuda/flash_fwd.cu, cuda/flash_bwd.cu and cuda/flash_f32.cu. */
#ifndef PUNA_FLASH_H
#define PUNA_FLASH_H

#include <stdint.h>

#include "params_check.h"

/* Threads of every block but those of flash_bwd_prepare. */
#define FLASH_THREADS 128

/* bf16, forward: queries of a block (by its width of a head) and keys of a step. */
#define FLASH_FWD_ROWS 128
#define FLASH_FWD_ROWS_256 64
#define FLASH_FWD_KEYS 64

/* bf16, forward by the warp groups of compute capability 9.0: rows of every box (queries of a block,
   keys of a step), steps whose keys and values are in shared memory at once, threads: a warp group
   that copies and two that have 64 queries each. */
#define FLASH_GROUP_ROWS FLASH_FWD_ROWS
#define FLASH_GROUP_STAGES 2
#define FLASH_GROUP_THREADS 384
/* Bytes of shared memory a column of the head, for queries, keys and values; and in all. */
#define FLASH_GROUP_COL_BYTES (2 * FLASH_GROUP_ROWS * (1 + 2 * FLASH_GROUP_STAGES))
#define FLASH_GROUP_BYTES_64 (1024 + 64 * FLASH_GROUP_COL_BYTES)
#define FLASH_GROUP_BYTES_128 (1024 + 128 * FLASH_GROUP_COL_BYTES)

/* bf16, backward: rows that a block owns (queries for dq, keys for dk and dv), rows of a step, and
   how many steps' rows are in shared memory at once. */
#define FLASH_DQ_ROWS 64
#define FLASH_DKDV_ROWS 64
#define FLASH_DKDV_ROWS_64 128
#define FLASH_BWD_STEP 32
#define FLASH_BWD_STAGES 2
#define FLASH_BWD_STAGES_256 1
/* Columns of dk and dv that a block sums at most; wider heads take several blocks. */
#define FLASH_DKDV_COLS 128

/* f32: rows that a block owns and rows of a step are the same number. Rows in shared memory are
   longer by the pad, so that 16 of them at one column lie on different banks. */
#define FLASH_F32_ROWS 32
#define FLASH_F32_ROWS_256 16
#define FLASH_F32_PAD 4

/* Threads of flash_bwd_prepare; a warp has one row of one head. */
#define FLASH_PREPARE_THREADS 256

/* Flags. */
#define FLASH_VECTORS 1 /* rows of f32 heads are 16-byte aligned */
#define FLASH_PAIRS 2   /* two neighbouring gradients may be stored at once */

/* Some rows of one packed sequence: what a block owns. */
typedef struct FlashTile {
    /* Row at which the sequence begins, and its length. */
    uint32_t start;
    uint32_t len;
    /* First of the block's positions in it. */
    uint32_t first;
    uint32_t pad_;
} FlashTile;
PUNA_SIZE(FlashTile, 16);

typedef struct FlashParams {
    /* Rows of all sequences. */
    uint32_t t;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    /* Key j is visible to the query at p when p - window < j <= p; 2^32 - 1: every j <= p. */
    uint32_t window;
    /* Factor of the scores; above 0. */
    float scale;
    uint32_t flags;
    uint32_t pad_;
} FlashParams;
PUNA_SIZE(FlashParams, 32);

typedef struct FlashPrepareParams {
    uint64_t rows;
    uint32_t n_heads;
    uint32_t head_dim;
    /* Whether four neighbouring elements of a head may be moved at once. */
    uint32_t packs;
    uint32_t pad_;
} FlashPrepareParams;
PUNA_SIZE(FlashPrepareParams, 24);

#endif
