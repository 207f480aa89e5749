// Layers with adapters for 1 to 16 rows, each row with an adapter of its own or none, at the speed
// of the memory that the weight comes from: y[i] = x[i] W^T + s (x[i] A^T) B^T + bias, in two
// kernels.
//
//   lora_skinny_shrink   us = bf16(s x A^T) for the rows of each adapter
//   lora_skinny_*        acc = x W^T, then for each adapter among the rows acc += us B^T, rows of
//                        other adapters being zero
//
// The sums are the chains of lora.cu (adding zero changes no sum), so a row has the same bits here
// and there, alone and in any company. Types and alignment as there: bf16, k and r multiples of 8.
#include "include/lora.h"
#include "include/skinny.cuh"

namespace {

using Narrow = SkinnyShape<bf16, SKINNY_NARROW, false>;
using Wide = SkinnyShape<bf16, SKINNY_WIDE, false>;

// The adapter of a row; without a list the first for all.
__device__ __forceinline__ int adapter_of_row(const int32_t* adapter_of, int row) {
    return adapter_of == nullptr ? 0 : adapter_of[row];
}

template <class S>
__device__ __forceinline__ void lora_skinny(void* out, const bf16* us, const bf16* x, const bf16* w,
                                            const bf16* b, const int32_t* adapter_of,
                                            const void* bias, const LoraParams& params) {
    const MatmulParams& p = params.product;
    const int col0 = int(blockIdx.x) * S::COLS, r = params.r;
    Acc acc[1];
    skinny_sums<S>(acc, x, w, nullptr, col0, p.m, p.n, p.k);

    // A lane's rows of us and its row of B: as fragments of mma have them.
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int col = col0 + warp_id() * SKINNY_COLS;
    for (int first = 0; first < p.m; ++first) {
        const int adapter = adapter_of_row(adapter_of, first);
        bool seen = adapter < 0;
        for (int row = 0; row < first; ++row) seen |= adapter_of_row(adapter_of, row) == adapter;
        // The same for all lanes: the list is.
        if (seen) continue;
        const int64_t b_row = (int64_t(adapter) * p.n + col + g) * r;
        for (int k = 0; k < r; k += 16) {
            uint32_t a[4], bf[2];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = g + i % 2 * 8, at = k + i / 2 * 8 + 2 * t;
                const bool inside =
                    row < p.m && at < r && adapter_of_row(adapter_of, row) == adapter;
                const auto pair = inside ? Pack<bf16, 2>::load(us + row * r + at) : Pack<bf16, 2>{};
                memcpy(&a[i], &pair, sizeof a[i]);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int at = k + i * 8 + 2 * t;
                const bool inside = col + g < p.n && at < r;
                const auto pair = inside ? Pack<bf16, 2>::load(b + b_row + at) : Pack<bf16, 2>{};
                memcpy(&bf[i], &pair, sizeof bf[i]);
            }
            mma_bf16(acc[0], a, bf);
        }
    }
    store_skinny(out, bias, p, acc[0], col);
}

}  // namespace

// us [m, r], bf16, s x A^T; u [m, r], f32, x A^T, or null; x [m, k], A [adapters, r, k], bf16;
// scales [adapters], f32, or null where the one of the parameters serves all; adapter_of [m],
// negative: none; null: the first for all. Blocks: 8 columns of one adapter each, adapter after
// adapter. Overwrites the rows that have an adapter.
extern "C" __global__ void __launch_bounds__(SKINNY_NARROW* WARP)
    lora_skinny_shrink(bf16* us, float* u, const bf16* x, const bf16* a, const float* scales,
                       const int32_t* adapter_of, LoraParams params) {
    const MatmulParams& p = params.product;
    const int r = params.r, per_adapter = tiles_of(r, Narrow::COLS);
    const int adapter = int(blockIdx.x) / per_adapter;
    const int col0 = int(blockIdx.x) % per_adapter * Narrow::COLS;
    bool wanted = false;
    for (int row = 0; row < p.m; ++row) wanted |= adapter_of_row(adapter_of, row) == adapter;
    if (!wanted) return;
    Acc acc[1];
    skinny_sums<Narrow>(acc, x, a + int64_t(adapter) * r * p.k, nullptr, col0, p.m, r, p.k);
    const float scale = scales == nullptr ? params.scale : scales[adapter];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = acc_row(2 * half);
        if (row >= p.m || adapter_of_row(adapter_of, row) != adapter) continue;
        const float u0 = acc[0][2 * half], u1 = acc[0][2 * half + 1];
        const int at = row * r + col0 + acc_col(0);
        const Pack<uint32_t, 1> pair = {pack_bf16(scale * u0, scale * u1)};
        pair.store(reinterpret_cast<uint32_t*>(us + at));
        if (u != nullptr) {
            const Pack<float, 2> both = {u0, u1};
            both.store(u + at);
        }
    }
}

// out [m, n], f32 or bf16, rounded once; us of lora_skinny_shrink; x [m, k], W [n, k], B [adapters,
// n, r], bf16; adapter_of as there; bias [n], f32 or bf16, or null. Overwrites, or adds with
// MATMUL_ACC.
extern "C" __global__ void __launch_bounds__(SKINNY_WIDE* WARP)
    lora_skinny_wide(void* out, const bf16* us, const bf16* x, const bf16* w, const bf16* b,
                     const int32_t* adapter_of, const void* bias, LoraParams p) {
    lora_skinny<Wide>(out, us, x, w, b, adapter_of, bias, p);
}

extern "C" __global__ void __launch_bounds__(SKINNY_NARROW* WARP)
    lora_skinny_narrow(void* out, const bf16* us, const bf16* x, const bf16* w, const bf16* b,
                       const int32_t* adapter_of, const void* bias, LoraParams p) {
    lora_skinny<Narrow>(out, us, x, w, b, adapter_of, bias, p);
}

PUNA_KERNEL(lora_skinny_shrink)
PUNA_KERNEL(lora_skinny_wide)
PUNA_KERNEL(lora_skinny_narrow)
