// The derivative of the input of a layer with an adapter whose weight is in NF4: lora_bwd.cu with the
// decoded weight rounded to bf16. W as quant_blocks.h has it. Source of the format: cpu/src/quant/nf4.
#include "include/lora_quant.cuh"

LORA_BWD_QUANT(nf4, QUANT_NF4)
LORA_BWD_QUANT(nf4_double, QUANT_NF4_DOUBLE)
