// The same for weights in the formats of GGUF that most quantised models have: as lora_bwd_nf4.cu; of
// the formats, cpu/src/quant/q4_0.rs, q8_0.rs, q4_k.rs and q6_k.rs.
#include "include/lora_quant.cuh"

LORA_BWD_QUANT(q4_0, QUANT_Q4_0)
LORA_BWD_QUANT(q8_0, QUANT_Q8_0)
LORA_BWD_QUANT(q4_k, QUANT_Q4_K)
LORA_BWD_QUANT(q6_k, QUANT_Q6_K)
