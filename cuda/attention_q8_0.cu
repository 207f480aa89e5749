// Attention of new rows over caches of q8_0, on tensor cores: attention_bf16.cu with codes times their
// scales, rounded to bf16, for keys and values.

#include "include/attention_mma.cuh"

ATTEND_KERNELS(q8_0, CacheQ8)
