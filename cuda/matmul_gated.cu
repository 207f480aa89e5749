// The gated half of a feed-forward block: out = silu(x W1^T) * (x W3^T), silu(v) = v / (1 + e^-v)
// (Shazeer 2020, arXiv 2002.05202).
//
// out [m, n], f32 or bf16 (rounded once); x [m, k], w1 (gate) and w3 (up) [n, k], bf16. f32 sums in
// the order of include/matmul_tile.cuh; both products stay in registers. Overwrites.
//
// Rows are 16-byte aligned, k a multiple of 8; matmul_any.cu takes the rest.
#include "include/matmul_tile.cuh"

namespace {

using Large = TileShape<MATMUL_LARGE, MATMUL_LARGE, 2, 2, false, true, true>;
using Small = TileShape<MATMUL_SMALL, MATMUL_SMALL, 2, 2, false, true, true>;

}  // namespace

extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul_gated_bf16_large(void* out, const bf16* x, const bf16* w1, const bf16* w3,
                            MatmulParams p) {
    tile_product<Large, false>(out, x, w1, nullptr, w3, nullptr, p);
}

extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul_gated_bf16_small(void* out, const bf16* x, const bf16* w1, const bf16* w3,
                            MatmulParams p) {
    tile_product<Small, false>(out, x, w1, nullptr, w3, nullptr, p);
}

PUNA_KERNEL(matmul_gated_bf16_large)
PUNA_KERNEL(matmul_gated_bf16_small)
