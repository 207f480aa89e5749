// Products with weights in GGUF's formats of 32 weights a block on tensor cores. Formula, shapes,
// types and order of sums are those of quant_tile_nf4.cu; of the formats, cpu/src/quant/q4_0.rs,
// q5_0.rs and q8_0.rs.
#include "include/quant_tile.cuh"

QUANT_TILES(q4_0, QUANT_Q4_0)
QUANT_SMALL_TILES(q4_1, QUANT_Q4_1)
QUANT_SMALL_TILES(q5_0, QUANT_Q5_0)
QUANT_SMALL_TILES(q5_1, QUANT_Q5_1)
QUANT_TILES(q8_0, QUANT_Q8_0)
