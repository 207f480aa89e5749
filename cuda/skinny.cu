// Products of 1 to 16 rows with weights, at the speed of the memory that the weights come from:
// out = alpha x W^T + bias, or out += ..., or gated, out = silu(x W1^T) * (x W3^T).
//
// out [m, n], f32 or bf16 (rounded once); x [m, k], bf16, or f32 that is rounded to bf16; weights
// [n, k], bf16; bias [n], f32 or bf16, or none. f32 sums, in the order of include/matmul_tile.cuh.
// Overwrites, or adds with MATMUL_ACC. Rows are 16-byte aligned, k a multiple of 8.
#include "include/skinny.cuh"

namespace {

template <class S>
__device__ __forceinline__ void skinny_product(void* out, const typename S::X* x, const bf16* w,
                                               const bf16* w3, const void* bias,
                                               const MatmulParams& p) {
    const int col0 = int(blockIdx.x) * S::COLS;
    Acc acc[S::GATED ? 2 : 1];
    skinny_sums<S>(acc, x, w, w3, col0, p.m, p.n, p.k);
    if constexpr (S::GATED) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[0][i] = silu(acc[0][i]) * acc[1][i];
    }
    store_skinny(out, bias, p, acc[0], col0 + warp_id() * SKINNY_COLS);
}

}  // namespace

// Two widths of a block, two types of x; plain and gated.
#define SKINNY_INSTANCE(name, X, WARPS)                                                            \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                      \
        name(void* out, const X* x, const bf16* w, const void* bias, MatmulParams p) {             \
        skinny_product<SkinnyShape<X, WARPS, false>>(out, x, w, nullptr, bias, p);                 \
    }                                                                                              \
    PUNA_KERNEL(name)
#define SKINNY_GATED_INSTANCE(name, X, WARPS)                                                      \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                      \
        name(void* out, const X* x, const bf16* w1, const bf16* w3, MatmulParams p) {              \
        skinny_product<SkinnyShape<X, WARPS, true>>(out, x, w1, w3, nullptr, p);                   \
    }                                                                                              \
    PUNA_KERNEL(name)

SKINNY_INSTANCE(skinny_bf16_wide, bf16, SKINNY_WIDE)
SKINNY_INSTANCE(skinny_bf16_narrow, bf16, SKINNY_NARROW)
SKINNY_INSTANCE(skinny_f32_wide, float, SKINNY_WIDE)
SKINNY_INSTANCE(skinny_f32_narrow, float, SKINNY_NARROW)
SKINNY_GATED_INSTANCE(skinny_gated_bf16_wide, bf16, SKINNY_WIDE)
SKINNY_GATED_INSTANCE(skinny_gated_bf16_narrow, bf16, SKINNY_NARROW)
SKINNY_GATED_INSTANCE(skinny_gated_f32_wide, float, SKINNY_WIDE)
SKINNY_GATED_INSTANCE(skinny_gated_f32_narrow, float, SKINNY_NARROW)
