// Products with weights in GGUF's K formats, 256 weights a block, on tensor cores. Formula, shapes,
// types and order of sums are those of quant_tile_nf4.cu; of the formats, cpu/src/quant/q2_k.rs to
// q6_k.rs.
#include "include/quant_tile.cuh"

QUANT_SMALL_TILES(q2_k, QUANT_Q2_K)
QUANT_SMALL_TILES(q3_k, QUANT_Q3_K)
QUANT_TILES(q4_k, QUANT_Q4_K)
QUANT_SMALL_TILES(q5_k, QUANT_Q5_K)
QUANT_TILES(q6_k, QUANT_Q6_K)
