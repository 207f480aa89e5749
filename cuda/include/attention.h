/* Launch constants, the layout of a cache and the scalars of cuda/attention_*.cu. */
#ifndef PUNA_ATTENTION_H
#define PUNA_ATTENTION_H

#include <stdint.h>

#include "params_check.h"

/* Positions of a page of a cache: what one step of attention on tensor cores goes over. */
#define ATTENTION_PAGE 64
/* Positions whose sums are made from nothing and then merged: counted from position 0, so they are
   the same however a row is computed. */
#define ATTENTION_CHUNK 256
/* Numbers of a head's row that share a scale in q8_0. */
#define ATTENTION_GROUP 32
/* Rows of a page begin at multiples of as many bytes. */
#define ATTENTION_ALIGN 16

/* Threads of every block. */
#define ATTENTION_THREADS 128
/* Packed rows (row of q, query head of the group) of a block: for few rows, whose four warps share
   the keys and columns of one fragment of 16 rows, and for many. Heads of more than 128 have two
   warps a fragment there. */
#define ATTENTION_NARROW 16
#define ATTENTION_WIDE 64
#define ATTENTION_WIDE_256 32
/* Pages whose keys and values are in shared memory at once, by the width of a head. */
#define ATTENTION_STAGES 2
#define ATTENTION_STAGES_256 1
/* f32 caches: positions of a step and packed rows of a block. */
#define ATTENTION_F32_KEYS 32
#define ATTENTION_F32_NARROW 16
#define ATTENTION_F32_WIDE 32
/* Numbers of a packed row behind the sums of its partial result: maximum and sum of exponentials, and
   two that keep the next sums 16-byte aligned. */
#define ATTENTION_STATS 4

/* Flags. */
#define ATTENTION_Q_VECTORS 1 /* 8 elements of a head of q may be read at once */
#define ATTENTION_OUT_BF16 2  /* the output is bf16, else f32 */
#define ATTENTION_PAIRS 4     /* two neighbouring outputs may be stored at once */

/* Consecutive rows of one sequence, and that sequence's cache of one layer. Read from memory by every
   kernel, so a step that is replayed finds new contents at the same address. */
typedef struct AttentionSegment {
    /* Addresses of page 0 of keys and of values. */
    uint64_t keys;
    uint64_t values;
    /* Address of the page numbers of the sequence's pages, or 0: pages are in order. */
    uint64_t table;
    /* Position of the first row, and how many there are. */
    uint32_t first_pos;
    uint32_t n_rows;
    /* Row of q, k, v and out that is the first. */
    uint32_t first_row;
    uint32_t pad_;
} AttentionSegment;
PUNA_SIZE(AttentionSegment, 40);

/* The packed rows of one segment that a block owns. */
typedef struct AttentionTile {
    uint32_t segment;
    /* First of the packed rows, counted from the segment's first row. */
    uint32_t first;
} AttentionTile;
PUNA_SIZE(AttentionTile, 8);

typedef struct AttentionParams {
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    /* Elements from a row of a page to the next. */
    uint32_t pitch;
    /* Key j is visible to the query at p when p - window < j <= p; 2^32 - 1: every j <= p. */
    uint32_t window;
    /* Factor of the scores; above 0. */
    float scale;
    /* Chunks that the grid and the partial results have room for; 0: a block goes over all chunks
       and writes the output. */
    uint32_t chunks;
    /* Of the partial results: packed rows of a tile, and columns. */
    uint32_t tile_rows;
    uint32_t width;
    /* MATMUL_F32 or MATMUL_BF16. */
    uint32_t q_type;
    uint32_t flags;
    uint32_t pad_;
} AttentionParams;
PUNA_SIZE(AttentionParams, 48);

typedef struct AttentionAppendParams {
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t pitch;
    /* Of the new rows: MATMUL_F32 or MATMUL_BF16. */
    uint32_t type;
} AttentionAppendParams;
PUNA_SIZE(AttentionAppendParams, 16);

#endif
