// Linear layers with low-rank adapters (Hu et al. 2021, arXiv 2106.09685), several adapters in one
// batch: y[i] = x[i] W^T + s (x[i] A^T) B^T + bias, with s, A and B of the adapter of row i.
//
// lora_bf16_r*: one pass over x. The product with A rides along the product with W:
//
//   for each stage of inputs                 x, W and A copied ahead into a ring
//     acc += x W^T                           [128, 128], a warp has 64 x 32
//     u   += x A^T                           [128, r], a warp has 16 rows
//   acc += bf16(s u) B^T
//
// Both sums are the chains of include/matmul_tile.cuh. Each block of columns computes u anew: r
// more columns to its 128, and no second launch, no second reading of x. A block has rows of one
// adapter: the list of tiles groups them, and rows are gathered and scattered by their index.
//
// lora_shrink, lora_expand_acc: what adapters of any type, rank and alignment, a row having its
// own, add to the weight's product. Few rows of aligned bf16: lora_skinny.cu.
#include "include/lora.h"
#include "include/matmul_tile.cuh"
#include "include/operand.cuh"
#include "include/reduce.cuh"

namespace {

using Tile = TileShape<LORA_TILE, LORA_TILE, 2, 4, false, true>;
static_assert(Tile::THREADS == LORA_THREADS, "as the launcher has it");
static_assert(Tile::MI == Tile::WARPS_N, "16 rows of u for each warp of a row of warps");

// x [.., k], W [n, k], A [adapters, r, k], B [adapters, n, r], bf16; scales [adapters], f32, or
// null where the one of the parameters serves all. out [.., n], f32 or bf16, rounded once; u [..,
// r], f32, x A^T unscaled, or null. `rows` lists the row of x, out and u behind each place of a
// tile; null: the place itself, the one adapter being the first. f32 sums. Overwrites, or adds to
// out with MATMUL_ACC. k and r are multiples of 8, rows 16-byte aligned.
template <int RANK>
__device__ __forceinline__ void lora(void* out, float* u_out, const bf16* x, const bf16* w,
                                     const bf16* a, const bf16* b, const float* scales,
                                     const int32_t* rows, const LoraTile* tiles, const void* bias,
                                     const LoraParams& params) {
    constexpr int NU = RANK / 8, STAGE = Tile::STAGE + RANK * Tile::BK;
    DYN_SMEM(smem);
    bf16* const ring = reinterpret_cast<bf16*>(smem);
    const MatmulParams& p = params.product;
    const int thread = int(threadIdx.x);
    const int warp_m = warp_id() / Tile::WARPS_N, warp_n = warp_id() % Tile::WARPS_N;
    const TileAt at = tile_at(blockIdx.x, params.tiles, tiles_of(p.n, Tile::BN));
    const int col0 = at.col * Tile::BN;
    const int first = tiles == nullptr ? at.row * Tile::BM : tiles[at.row].first;
    const int count = tiles == nullptr ? min(p.m - first, Tile::BM) : tiles[at.row].count;
    const int adapter = tiles == nullptr ? 0 : tiles[at.row].adapter;
    auto row_of = [&](int row) {
        if (row >= count) return int64_t(-1);
        return rows == nullptr ? int64_t(first) + row : int64_t(rows[first + row]);
    };

    // The chunks of x that this thread copies in every stage: their rows stay the same.
    constexpr int PER_ROW = Tile::BK / CHUNK, CHUNKS = Tile::BM * PER_ROW / Tile::THREADS;
    int64_t from_row[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) from_row[c] = row_of((c * Tile::THREADS + thread) / PER_ROW);
    const int stages = tiles_of(p.k, Tile::BK);
    FactorCopy<false, Tile::BN, Tile::THREADS> copy_w;
    FactorCopy<false, RANK, Tile::THREADS> copy_a;
    copy_w.begin(w, col0, p.n, p.k);
    copy_a.begin(a + int64_t(max(adapter, 0)) * params.r * p.k, 0, params.r, p.k);
    auto copy_stage = [&](int t) {
        bf16* const xs = ring + t % MATMUL_STAGES * STAGE;
        bf16* const ws = xs + Tile::A_SIZE;
        const int k0 = t * Tile::BK;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int i = c * Tile::THREADS + thread, col = i % PER_ROW * CHUNK;
            const bool inside = from_row[c] >= 0 && k0 + col < p.k;
            cp_async16_zfill(xs + swizzled<Tile::BK>(i / PER_ROW, col),
                             inside ? x + from_row[c] * p.k + k0 + col : x, inside);
        }
        copy_w.copy(ws);
        if (adapter >= 0) copy_a.copy(ws + Tile::BN * Tile::BK);
    };

    Acc acc[Tile::MI][Tile::NI], u[1][NU];
    clear(acc);
    clear(u);
    const int u_row = (warp_m * Tile::MI + warp_n) * 16;
#pragma unroll
    for (int t = 0; t < MATMUL_STAGES - 1; ++t) {
        if (t < stages) copy_stage(t);
        cp_async_commit();
    }
    for (int t = 0; t < stages; ++t) {
        cp_async_wait<MATMUL_STAGES - 2>();
        __syncthreads();
        if (t + MATMUL_STAGES - 1 < stages) copy_stage(t + MATMUL_STAGES - 1);
        cp_async_commit();
        const bf16* const xs = ring + t % MATMUL_STAGES * STAGE;
        const bf16* const ws = xs + Tile::A_SIZE;
        multiply_stage<Tile>(acc, xs, ws, warp_m, warp_n);
        if (adapter < 0) continue;
#pragma unroll
        for (int k = 0; k < Tile::BK; k += 16) {
            uint32_t xf[4];
            load_a<Tile::BK>(xf, xs, u_row, k);
#pragma unroll
            for (int j = 0; j < NU / 2; ++j) {
                uint32_t af[2][2];
                load_b2<Tile::BK>(af, ws + Tile::BN * Tile::BK, j * 16, k);
                mma_bf16(u[0][2 * j], xf, af[0]);
                mma_bf16(u[0][2 * j + 1], xf, af[1]);
            }
        }
    }

    if (adapter >= 0) {
        // The ring becomes room for s u [128, RANK] and B [128, RANK].
        bf16* const us = ring;
        bf16* const bs = ring + Tile::BM * RANK;
        cp_async_wait<0>();
        __syncthreads();
        const bf16* const from = b + (int64_t(adapter) * p.n + col0) * params.r;
        copy_tile<Tile::BN, RANK, Tile::THREADS>(bs, from, params.r, p.n - col0, params.r, thread);
        cp_async_commit();
        const float scale = scales == nullptr ? params.scale : scales[adapter];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = u_row + acc_row(2 * half);
            const int64_t to = u_out == nullptr || at.col != 0 ? int64_t(-1) : row_of(row);
#pragma unroll
            for (int ni = 0; ni < NU; ++ni) {
                const int col = ni * 8 + acc_col(0);
                const float u0 = u[0][ni][2 * half], u1 = u[0][ni][2 * half + 1];
                const Pack<uint32_t, 1> pair = {pack_bf16(scale * u0, scale * u1)};
                pair.store(reinterpret_cast<uint32_t*>(us + swizzled<RANK>(row, col)));
                if (to >= 0 && col < params.r) {
                    const Pack<float, 2> both = {u0, u1};
                    both.store(u_out + to * params.r + col);
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < RANK; k += 16) {
            uint32_t uf[Tile::MI][4], bf[2][2];
#pragma unroll
            for (int mi = 0; mi < Tile::MI; ++mi) {
                load_a<RANK>(uf[mi], us, (warp_m * Tile::MI + mi) * 16, k);
            }
#pragma unroll
            for (int j = 0; j < Tile::NI / 2; ++j) {
                load_b2<RANK>(bf, bs, Tile::col(warp_n, 2 * j), k);
#pragma unroll
                for (int mi = 0; mi < Tile::MI; ++mi) {
                    mma_bf16(acc[mi][2 * j], uf[mi], bf[0]);
                    mma_bf16(acc[mi][2 * j + 1], uf[mi], bf[1]);
                }
            }
        }
    }
    store_tile<Tile>(out, bias, p, acc, col0, warp_m, warp_n, row_of);
}

}  // namespace

// Ranks up to 16, 32 and 64; columns of A behind r are zero.
#define LORA_INSTANCE(name, RANK)                                                                  \
    extern "C" __global__ void __launch_bounds__(LORA_THREADS)                                     \
        name(void* out, float* u, const bf16* x, const bf16* w, const bf16* a, const bf16* b,      \
             const float* scales, const int32_t* rows, const LoraTile* tiles, const void* bias,    \
             LoraParams p) {                                                                       \
        lora<RANK>(out, u, x, w, a, b, scales, rows, tiles, bias, p);                              \
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
