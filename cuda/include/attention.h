/* Launch constants, scalars and descriptors of cuda/attention_*.cu. */
#ifndef PUNA_ATTENTION_H
#define PUNA_ATTENTION_H

#include <stdint.h>

#include "params_check.h"

/* Threads of every block. */
#define ATTENTION_THREADS 128

/* Positions in a chunk of the fixed grid that begins at position 0: a chunk is softened by itself,
   and a row's chunks are merged from left to right. */
#define ATTENTION_CHUNK 256
/* Positions of a step within a chunk; the second for caches of f32. */
#define ATTENTION_STEP 64
#define ATTENTION_STEP_F32 32

/* Rows (tokens times the heads of a group) of a block: of attention_decode, where a block has one
   chunk, and of attention_prompt, where it has them all; the third for caches of f32 in both. */
#define ATTENTION_DECODE_ROWS 16
#define ATTENTION_PROMPT_ROWS 64
#define ATTENTION_ROWS_F32 16

/* attention_decode: tiles of keys or values in shared memory at once; elements of a row of scores. */
#define ATTENTION_STAGES 4
#define ATTENTION_STAGES_256 2
#define ATTENTION_SCORES (ATTENTION_CHUNK + 8)
/* attention_prompt: columns of the result that a block sums at most. */
#define ATTENTION_COLS 128
/* Caches of f32: pad of a row in shared memory, as in flash.h. */
#define ATTENTION_PAD_F32 4

/* Dimensions that share a scale in q8_0: x = scale * code, codes -127 to 127. */
#define ATTENTION_Q8_GROUP 32

/* What cached numbers are stored as. */
#define ATTENTION_KV_F32 0
#define ATTENTION_KV_BF16 1
#define ATTENTION_KV_F16 2
#define ATTENTION_KV_Q8_0 3

/* Some consecutive tokens of one sequence and its cache. Keys and values are
   [layers, layer_positions, n_kv_heads, head_dim] each, scales of q8_0
   [layers, layer_positions, n_kv_heads, head_dim / 32 rounded up] f32. */
typedef struct KvSequence {
    /* Addresses on the device. */
    uint64_t k;
    uint64_t v;
    uint64_t k_scales;
    uint64_t v_scales;
    /* Address of the sequence's pages: page i holds its positions from i times the size of a page
       on. 0: position i is position i of the cache. */
    uint64_t pages;
    uint64_t layer_positions;
    /* Position of the first token. */
    uint32_t first_pos;
    uint32_t n_tokens;
    /* The first token's row of q, out, k and v. */
    uint32_t first_token;
    /* Number of its first row among those of all sequences whose chunks are merged. */
    uint32_t first_slot;
} KvSequence;
PUNA_SIZE(KvSequence, 64);

/* Some rows of one sequence: what a block has. A row is a token and a head of the group, tokens
   outermost. */
typedef struct AttentionTile {
    uint32_t sequence;
    uint32_t first;
} AttentionTile;
PUNA_SIZE(AttentionTile, 8);

typedef struct AttentionParams {
    /* Factor of the scores; above 0. */
    float scale;
    /* Key j is visible to the query at p when p - window < j <= p; 2^32 - 1: every j <= p. */
    uint32_t window;
    uint32_t layer;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    /* Positions of a page are 2 to the power of this. */
    uint32_t page_shift;
    uint32_t kv_type;
    /* Rows whose chunks are merged, and chunks that one of them has at most. */
    uint32_t n_slots;
    uint32_t max_chunks;
    uint32_t flags;
    uint32_t pad_;
} AttentionParams;
PUNA_SIZE(AttentionParams, 48);

/* Flags. */
#define ATTENTION_VECTORS 1    /* 8 elements of a cached head may be moved at once */
#define ATTENTION_Q_VECTORS 2  /* the same of a head of q */
#define ATTENTION_OUT_PAIRS 4  /* two neighbouring results may be stored at once */

#endif
