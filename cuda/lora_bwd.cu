// The derivative of the input of a layer with a low-rank adapter, in one pass over that of its output:
//
//   du = s dy B          dx = dy W + bf16(du) A, or dx += that
//
// dx [m, k], f32 or bf16 (rounded once); du [m, r], bf16, which the adapter's own gradients are made
// from (lora_grads.cu), overwritten; dy [m, n], W [n, k], B [n, r], A [r, k], bf16, 16-byte aligned; n,
// k and r multiples of 8. f32 sums, in the order of include/lora_tile.cuh. Overwrites dx, or adds with
// MATMUL_ACC. The product's n and k in the parameters are the other way round: k columns of n inputs.
#include "include/lora_tile.cuh"

#define LORA_BWD(name, RANK)                                                                       \
    extern "C" __global__ void __launch_bounds__(LORA_THREADS)                                     \
        name(void* dx, bf16* du, const bf16* dy, const bf16* w, const bf16* b, const bf16* a,      \
             LoraParams p) {                                                                       \
        lora<RANK, true>(dx, du, dy, StoredWeight<true>{w}, b, a, nullptr, nullptr, nullptr,       \
                         nullptr, p);                                                              \
    }                                                                                              \
    PUNA_KERNEL(name)

LORA_BWD(lora_bwd_bf16_r16, LORA_RANK_16)
LORA_BWD(lora_bwd_bf16_r32, LORA_RANK_32)
LORA_BWD(lora_bwd_bf16_r64, LORA_RANK_64)
