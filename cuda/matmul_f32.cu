// out = alpha a b + bias, or out += alpha a b + bias, in single precision.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k] and b [k, n], each as stored or as the transpose
// of what is stored, f32, bf16 or f16 read as f32; bias [n], f32 or bf16, or none. Overwrites, or
// adds with MATMUL_ACC. Any length of row and alignment.
//
// Order of summation: an output element is one chain of fused multiply-adds over its inputs in
// order, from zero, whatever the tile; so a row has the same bits in any company.
#include "include/simt_tile.cuh"

namespace {

using Large = SimtShape<MATMUL_LARGE, MATMUL_LARGE, 8, 8>;
using Small = SimtShape<MATMUL_SMALL, MATMUL_SMALL, 8, 4>;
static_assert(Large::THREADS == MATMUL_F32_LARGE_THREADS, "as the launcher has it");
static_assert(Small::THREADS == MATMUL_F32_SMALL_THREADS, "as the launcher has it");

template <class S>
__device__ __forceinline__ void f32_product(void* out, const void* a, const void* b,
                                            const void* bias, const MatmulParams& p) {
    const Operand from_a = {a, p.a_type, (p.flags & MATMUL_A_VECTORS) != 0};
    const Operand from_b = {b, p.b_type, (p.flags & MATMUL_B_VECTORS) != 0};
    const StoredSource left = {from_a, !(p.flags & MATMUL_A_TRANSPOSED)};
    const StoredSource right = {from_b, (p.flags & MATMUL_B_TRANSPOSED) != 0};
    simt_product<S>(out, left, right, bias, p);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(MATMUL_F32_LARGE_THREADS)
    matmul_f32_large(void* out, const void* a, const void* b, const void* bias, MatmulParams p) {
    f32_product<Large>(out, a, b, bias, p);
}

extern "C" __global__ void __launch_bounds__(MATMUL_F32_SMALL_THREADS)
    matmul_f32_small(void* out, const void* a, const void* b, const void* bias, MatmulParams p) {
    f32_product<Small>(out, a, b, bias, p);
}

PUNA_KERNEL(matmul_f32_large)
PUNA_KERNEL(matmul_f32_small)
