// Linear layers with low-rank adapters (Hu et al. 2021, arXiv 2106.09685), several adapters in one
// batch: y[i] = x[i] W^T + s (x[i] A^T) B^T + bias, with s, A and B of the adapter of row i.
//
// lora_bf16_r*: one pass over x, in include/lora_tile.cuh; W is bf16, [n, k]. Quantised weights:
// lora_quant_*.cu.
//
// lora_shrink, lora_expand_acc: what adapters of any type, rank and alignment, a row having its
// own, add to the weight's product. Few rows of aligned bf16: lora_skinny.cu.
#include "include/lora_tile.cuh"
#include "include/operand.cuh"
#include "include/reduce.cuh"

// Ranks up to 16, 32 and 64; columns of A behind r are zero.
#define LORA_INSTANCE(name, RANK)                                                                  \
    extern "C" __global__ void __launch_bounds__(LORA_THREADS)                                     \
        name(void* out, float* u, const bf16* x, const bf16* w, const bf16* a, const bf16* b,      \
             const float* scales, const int32_t* rows, const LoraTile* tiles, const void* bias,    \
             LoraParams p) {                                                                       \
        lora<RANK, false>(out, u, x, StoredWeight<false>{w}, a, b, scales, rows, tiles, bias, p);  \
    }                                                                                              \
    PUNA_KERNEL(name)

LORA_INSTANCE(lora_bf16_r16, LORA_RANK_16)
LORA_INSTANCE(lora_bf16_r32, LORA_RANK_32)
LORA_INSTANCE(lora_bf16_r64, LORA_RANK_64)

// u[i, j] = sum over k of x[i, k] A[adapter_of[i]][j, k], or 0 where the row has no adapter.
//
// u [m, r], f32; x [m, k], f32 or bf16; A [adapters, r, k], f32, bf16 or f16. f32 sums: chunk c of
// 8 inputs belongs to lane c % 32, in order; then the lanes (warp_sum). Overwrites.
extern "C" __global__ void __launch_bounds__(LORA_ROW_THREADS)
    lora_shrink(float* u, const void* x, const void* a, const int32_t* adapter_of,
                LoraRowsParams p) {
    constexpr int WARPS = LORA_ROW_THREADS / WARP;
    const unsigned per_row = unsigned(tiles_of(p.r, WARPS));
    const int64_t row = blockIdx.x / per_row;
    const int j = int(blockIdx.x % per_row) * WARPS + warp_id();
    if (j >= p.r) return;
    const int adapter = adapter_of[row];
    float sum = 0.f;
    if (adapter >= 0) {
        const Operand from_x = {x, p.x_type, (p.flags & MATMUL_A_VECTORS) != 0};
        const Operand from_a = {a, p.adapter_type, (p.flags & MATMUL_B_VECTORS) != 0};
        const int64_t a_row = int64_t(adapter) * p.r + j;
        for (int64_t k = lane_id() * READ; k < p.k; k += WARP * READ) {
            float xs[READ], as[READ];
            read_chunk(xs, from_x, size_t(row) * p.k + k, p.k - k);
            read_chunk(as, from_a, size_t(a_row) * p.k + k, p.k - k);
#pragma unroll
            for (int i = 0; i < READ; ++i) sum = fmaf(xs[i], as[i], sum);
        }
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) u[row * p.r + j] = sum;
}

template <class O>
__device__ __forceinline__ void expand_acc(O* out, const float* u, const void* b,
                                           const float* scales, const int32_t* adapter_of,
                                           const LoraRowsParams& p) {
    const unsigned per_row = unsigned(tiles_of(p.n, LORA_ROW_THREADS));
    const int64_t row = blockIdx.x / per_row;
    const int64_t col = int64_t(blockIdx.x % per_row) * LORA_ROW_THREADS + threadIdx.x;
    const int adapter = adapter_of[row];
    if (adapter < 0 || col >= p.n) return;
    const Operand from_b = {b, p.adapter_type, (p.flags & MATMUL_B_VECTORS) != 0};
    const size_t b_row = (size_t(adapter) * p.n + col) * p.r;
    float sum = 0.f;
    for (int j = 0; j < p.r; j += READ) {
        float bs[READ];
        read_chunk(bs, from_b, b_row + j, p.r - j);
#pragma unroll
        for (int i = 0; i < READ; ++i) {
            if (j + i < p.r) sum = fmaf(u[row * p.r + j + i], bs[i], sum);
        }
    }
    O* const to = out + row * p.n + col;
    *to = from_f32<O>(fmaf(scales[adapter], sum, to_f32(*to)));
}

// out[i, n] += s sum over j of u[i, j] B[adapter_of[i]][n, j]; rows without adapter stay as they
// are.
//
// out [m, n], f32 or bf16; u [m, r], f32; B [adapters, n, r], f32, bf16 or f16; s of the row's
// adapter. f32 sums, in order. Adds.
extern "C" __global__ void __launch_bounds__(LORA_ROW_THREADS)
    lora_expand_acc(void* out, const float* u, const void* b, const float* scales,
                    const int32_t* adapter_of, LoraRowsParams p) {
    if (p.flags & MATMUL_OUT_BF16) {
        expand_acc(static_cast<bf16*>(out), u, b, scales, adapter_of, p);
    } else {
        expand_acc(static_cast<float*>(out), u, b, scales, adapter_of, p);
    }
}

PUNA_KERNEL(lora_shrink)
PUNA_KERNEL(lora_expand_acc)
