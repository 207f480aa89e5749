// The fused layer with a low-rank adapter on tensor cores: what lora.cu, lora_bwd.cu, whose heads say
// what they compute, and the files for quantised weights share.
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
// BACK: the derivative of the layer's input is the same with everything the other way round: dy stands
// for x, W for W^T, and the adapter's B and A, as they are, for A^T and B^T.
#pragma once

#include "lora.h"
#include "matmul_tile.cuh"

template <bool BACK>
using LoraShape = TileShape<LORA_TILE, LORA_TILE, 2, 4, false, !BACK>;
static_assert(LoraShape<false>::THREADS == LORA_THREADS, "as the launcher has it");
static_assert(LoraShape<false>::MI == LoraShape<false>::WARPS_N,
              "16 rows of u for each warp of a row of warps");

// How the stages of W come into the ring: here bf16, as it is stored, by copies like those of x.
template <bool BACK> struct StoredWeight {
    const bf16* w;
    FactorCopy<BACK, LORA_TILE, LORA_THREADS> copies;

    // The tile's first column, and what a block has of shared memory behind the ring.
    __device__ __forceinline__ void begin(int col0, const MatmulParams& p, bf16*) {
        copies.begin(w, col0, p.n, p.k);
    }
    // The next stage, asynchronously.
    __device__ __forceinline__ void copy(bf16* tile) { copies.copy(tile); }
    // Before the first stage, and beside stage t, of `stages`; `tile_of(t)` is where stage t lies.
    template <class TileOf> __device__ __forceinline__ void start(int, TileOf) {}
    template <class TileOf> __device__ __forceinline__ void advance(int, int, TileOf) {}
};

// x [.., k], A [adapters, r, k], B [adapters, n, r], bf16; W [n, k], of any kind; scales [adapters], f32, or
// null where the one of the parameters serves all. out [.., n], f32 or bf16, rounded once; u [..,
// r], f32, x A^T unscaled, or null. `rows` lists the row of x, out and u behind each place of a
// tile; null: the place itself, the one adapter being the first. f32 sums. Overwrites, or adds to
// out with MATMUL_ACC. n, k and r are multiples of 8, rows 16-byte aligned.
//
// BACK: W [k, n], A [adapters, k, r], B [adapters, r, n]; u is bf16(s x A), in bf16.
template <int RANK, bool BACK, class Weight>
__device__ __forceinline__ void lora(void* out, void* u_out, const bf16* x, Weight weight,
                                     const bf16* a, const bf16* b, const float* scales,
                                     const int32_t* rows, const LoraTile* tiles, const void* bias,
                                     const LoraParams& params) {
    using Tile = LoraShape<BACK>;
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
    FactorCopy<BACK, RANK, Tile::THREADS> copy_a;
    weight.begin(col0, p, ring + MATMUL_STAGES * STAGE);
    copy_a.begin(a + int64_t(max(adapter, 0)) * params.r * p.k, 0, params.r, p.k);
    auto tile_of = [&](int t) { return ring + t % MATMUL_STAGES * STAGE + Tile::A_SIZE; };
    auto copy_stage = [&](int t) {
        bf16* const xs = ring + t % MATMUL_STAGES * STAGE;
        bf16* const ws = tile_of(t);
        const int k0 = t * Tile::BK;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int i = c * Tile::THREADS + thread, col = i % PER_ROW * CHUNK;
            const bool inside = from_row[c] >= 0 && k0 + col < p.k;
            cp_async16_zfill(xs + swizzled<Tile::BK>(i / PER_ROW, col),
                             inside ? x + from_row[c] * p.k + k0 + col : x, inside);
        }
        weight.copy(ws);
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
    weight.start(stages, tile_of);
    for (int t = 0; t < stages; ++t) {
        cp_async_wait<MATMUL_STAGES - 2>();
        __syncthreads();
        if (t + MATMUL_STAGES - 1 < stages) copy_stage(t + MATMUL_STAGES - 1);
        cp_async_commit();
        weight.advance(t, stages, tile_of);
        const bf16* const xs = ring + t % MATMUL_STAGES * STAGE;
        const bf16* const ws = tile_of(t);
        multiply_stage<Tile>(acc, xs, ws, warp_m, warp_n);
        if (adapter < 0) continue;
#pragma unroll
        for (int k = 0; k < Tile::BK; k += 16) {
            uint32_t xf[4];
            load_a<Tile::BK>(xf, xs, u_row, k);
#pragma unroll
            for (int j = 0; j < NU / 2; ++j) {
                uint32_t af[2][2];
                if constexpr (BACK) {
                    load_b2_trans<RANK>(af, ws + Tile::BN * Tile::BK, k, j * 16);
                } else {
                    load_b2<Tile::BK>(af, ws + Tile::BN * Tile::BK, j * 16, k);
                }
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
        const bf16* const own = b + int64_t(adapter) * p.n * params.r;
        if constexpr (BACK) {
            copy_tile<RANK, Tile::BN, Tile::THREADS>(bs, own + col0, p.n, params.r, p.n - col0,
                                                     thread);
        } else {
            copy_tile<Tile::BN, RANK, Tile::THREADS>(bs, own + int64_t(col0) * params.r, params.r,
                                                     p.n - col0, params.r, thread);
        }
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
                if (to < 0 || col >= params.r) continue;
                if constexpr (BACK) {
                    bf16* const place = static_cast<bf16*>(u_out) + to * params.r + col;
                    pair.store(reinterpret_cast<uint32_t*>(place));
                } else {
                    const Pack<float, 2> both = {u0, u1};
                    both.store(static_cast<float*>(u_out) + to * params.r + col);
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
                if constexpr (BACK) {
                    load_b2_trans<Tile::BN>(bf, bs, k, Tile::col(warp_n, 2 * j));
                } else {
                    load_b2<RANK>(bf, bs, Tile::col(warp_n, 2 * j), k);
                }
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
