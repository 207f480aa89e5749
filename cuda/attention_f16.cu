// Attention of new rows over caches of f16, on tensor cores: attention_bf16.cu with f16 for bf16, queries
// and exponentials included. A query beyond 65504 becomes infinite, as a key does in such a cache.

#include "include/attention_mma.cuh"

ATTEND_KERNELS(f16, CacheF16)
