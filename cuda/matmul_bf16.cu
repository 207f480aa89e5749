// out = alpha a b + bias, or out += alpha a b + bias, on tensor cores.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k] and b [k, n] as stored (n) or as the transpose
// of what is stored (t), bf16; bias [n], f32 or bf16, or none. f32 sums, in the order that
// include/matmul_tile.cuh states. Overwrites, or adds with MATMUL_ACC.
//
// Stored rows are 16-byte aligned and of a multiple of 8 elements; matmul_any.cu takes the rest.
#include "include/matmul_tile.cuh"

namespace {

// Warps 2 x 2; of 64 x 64 outputs each in the large tile: four fragments of a meet eight of b, so
// that shared memory is read once for 32 instructions.
template <bool TA, bool TB> using Large = TileShape<MATMUL_LARGE, MATMUL_LARGE, 2, 2, TA, TB>;
template <bool TA, bool TB> using Small = TileShape<MATMUL_SMALL, MATMUL_SMALL, 2, 2, TA, TB>;

}  // namespace

// Eight instances: four forms, two tiles.
#define MATMUL_INSTANCE(name, Shape, TA, TB)                                                       \
    extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)                                \
        name(void* out, const bf16* a, const bf16* b, const void* bias, MatmulParams p) {          \
        tile_product<Shape<TA, TB>, false>(out, a, b, nullptr, nullptr, bias, p);                  \
    }                                                                                              \
    PUNA_KERNEL(name)

MATMUL_INSTANCE(matmul_nn_bf16_large, Large, false, false)
MATMUL_INSTANCE(matmul_nt_bf16_large, Large, false, true)
MATMUL_INSTANCE(matmul_tn_bf16_large, Large, true, false)
MATMUL_INSTANCE(matmul_tt_bf16_large, Large, true, true)
MATMUL_INSTANCE(matmul_nn_bf16_small, Small, false, false)
MATMUL_INSTANCE(matmul_nt_bf16_small, Small, false, true)
MATMUL_INSTANCE(matmul_tn_bf16_small, Small, true, false)
MATMUL_INSTANCE(matmul_tt_bf16_small, Small, true, true)

// out = alpha (a b + a2 b2) (+ out) in one chain of sums: a2 [m, k2], b2 [k2, n], stored plainly.
// The gradient of an adapted layer's input, dx = dy W + du A, is one pass over dx.
#define MATMUL_TWO_INSTANCE(name, Shape)                                                           \
    extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)                                \
        name(void* out, const bf16* a, const bf16* b, const bf16* a2, const bf16* b2,              \
             MatmulParams p) {                                                                     \
        tile_product<Shape<false, false>, true>(out, a, b, a2, b2, nullptr, p);                    \
    }                                                                                              \
    PUNA_KERNEL(name)

MATMUL_TWO_INSTANCE(matmul_nn_two_bf16_large, Large)
MATMUL_TWO_INSTANCE(matmul_nn_two_bf16_small, Small)
