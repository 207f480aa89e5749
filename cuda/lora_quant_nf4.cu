// Layers y = x W^T + s (x A^T) B^T + bias with W in NF4, in one pass over x: QLoRA's forward pass.
//
// y [m, n], f32 or bf16 (rounded once), overwritten; u [m, r], f32, x A^T, overwritten, or null; x
// [m, k], A [r, k], B [n, r], bf16, 16-byte aligned, r a multiple of 8; W as quant_blocks.h has it,
// decoded in f32 and rounded to bf16; bias [n], f32 or bf16, or none. f32 sums, in the order of
// lora.cu. Source of the format: cpu/src/quant/nf4.
#include "include/lora_quant.cuh"

LORA_QUANT(nf4, QUANT_NF4)
LORA_QUANT(nf4_double, QUANT_NF4_DOUBLE)
