// Products with NF4 weights on tensor cores: out = alpha (a W' + a2 b2) + bias, or out += ..., W'
// being W^T (nt: a layer) or W (nn: the gradient of its input).
//
// out [m, n], f32 or bf16 (rounded once); a [m, k], bf16; W as quant_blocks.h has it, decoded in f32
// and rounded to bf16, to nearest even; a2 [m, k2], b2 [n, k2] (nt) or [k2, n] (nn), bf16, where k2 >
// 0; bias [n], f32 or bf16, or none. f32 sums, in the order of include/matmul_tile.cuh, the second
// product behind the first. Overwrites, or adds with MATMUL_ACC.
//
// Rows of a, a2 and b2 are 16-byte aligned and of a multiple of 8 elements. Source of the format:
// cpu/src/quant/nf4.
#include "include/quant_tile.cuh"

QUANT_TILES(nf4, QUANT_NF4)
QUANT_TILES(nf4_double, QUANT_NF4_DOUBLE)
QUANT_SMALL_TILES(nf4_ragged, QUANT_NF4_RAGGED)
