// What the products of warp groups share (matmul_sm90a.cu, matmul_tma_sm90a.cu): the tile, its
// consumers' part of a stage, and how their sums leave.
//
// A tile has WGMMA_BM x WGMMA_BN outputs, 64 x WGMMA_BN for each of two warp groups. f32 sums, 16
// inputs at a time in order from zero, as in matmul_tile.cuh; whether the bits are those of
// mma.m16n8k16 is for a GPU to say.
#pragma once

#include "matmul_tile.cuh"
#include "wgmma.cuh"

constexpr int BM = WGMMA_BM, BN = WGMMA_BN, BK = WGMMA_BK, STAGES = WGMMA_STAGES;
constexpr int A_SIZE = BM * BK, STAGE_SIZE = (BM + BN) * BK;
// Warp groups that multiply, and sums of a thread.
constexpr int CONSUMERS = BM / 64, SUMS = BN / 2;
static_assert(BK == BOX_COLS, "a stage is one square deep");
static_assert(WGMMA_THREADS == (1 + CONSUMERS) * GROUP, "one warp group copies");

// Registers of a copying and of a multiplying thread: together what WGMMA_THREADS of 168 have, which
// is what a launch of one block with so many threads gives.
constexpr int FEW_REGISTERS = 40, MANY_REGISTERS = 232;
static_assert(GROUP * FEW_REGISTERS + CONSUMERS * GROUP * MANY_REGISTERS == WGMMA_THREADS * 168,
              "as many are taken as are given");

using Ring = RingAt<STAGES>;
using Barriers = RingBarriers<STAGES>;

// The sums of one warp group over `stages` stages, of which there are some. TA, TB as in TileShape: a factor that is not
// transposed has its inputs along memory if it is a, across if it is b.
template <bool TA, bool TB>
__device__ __forceinline__ void multiply_stages(float (&acc)[SUMS], const bf16* ring,
                                                Barriers& barriers, Ring& at, int group,
                                                int stages) {
    int before = -1;
    for (int t = 0; t < stages; ++t) {
        mbarrier_wait(&barriers.full[at.slot], at.round);
        const bf16* const as = ring + at.slot * STAGE_SIZE;
        const bf16* const own = as + group * square_size(64);
        constexpr int SQUARE_BYTES = square_size(BK) * 2;
        const uint64_t a = TA ? wgmma_inputs_across(own, SQUARE_BYTES) : wgmma_inputs_along(own);
        const uint64_t b = TB ? wgmma_inputs_along(as + A_SIZE)
                              : wgmma_inputs_across(as + A_SIZE, SQUARE_BYTES);
        hold(acc);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 16; ++k) {
            wgmma<BN, TA, !TB>(acc, a + k * NEXT_16<TA>, b + k * NEXT_16<!TB>, t > 0 || k > 0);
        }
        wgmma_commit();
        // The stage before this one has been read.
        wgmma_wait<1>();
        if (t > 0 && lane_id() == 0) mbarrier_arrive(&barriers.empty[before]);
        before = at.slot;
        at.next();
    }
    wgmma_wait<0>();
    hold(acc);
    if (lane_id() == 0) mbarrier_arrive(&barriers.empty[before]);
}

// Arrivals that make a stage empty: one a warp.
constexpr int READERS = CONSUMERS * GROUP / WARP;

// Outputs of any kind.
template <class O>
__device__ __forceinline__ void store_group_as(O* out, const void* bias, const MatmulParams& p,
                                               const float (&acc)[SUMS], int row0, int col0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + acc_row(2 * half);
        if (row >= p.m) continue;
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            const int col = col0 + j * 8 + acc_col(0);
            put_pair(out, bias, p, size_t(row), col, acc[4 * j + 2 * half],
                     acc[4 * j + 2 * half + 1]);
        }
    }
}

// Trades words among the four lanes of a quad: word i of lane t becomes word t of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        const bool high = lane_id() & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            const uint32_t got = __shfl_xor_sync(FULL_MASK, high ? w[i] : w[i + step], step);
            if (high) {
                w[i] = got;
            } else {
                w[i + step] = got;
            }
        }
    }
}

// Plain outputs in bf16, 16 bytes at a time: lanes of a quad trade so that each has eight
// neighbouring columns. A store then writes 64 bytes of a row, not 16.
__device__ __forceinline__ void store_chunks(bf16* out, const MatmulParams& p,
                                             const float (&acc)[SUMS], int row0, int col0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + acc_row(2 * half);
#pragma unroll
        for (int j = 0; j < BN / 8; j += 4) {
            Pack<uint32_t, 4> chunk;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* const v = acc + 4 * (j + i) + 2 * half;
                chunk.v[i] = pack_bf16(fmaf(p.alpha, v[0], 0.f), fmaf(p.alpha, v[1], 0.f));
            }
            transpose_quad(chunk.v);
            const int col = col0 + (j + lane_id() % 4) * 8;
            if (row < p.m && col < p.n) {
                bf16* const to = out + size_t(row) * size_t(p.n) + col;
                chunk.store(reinterpret_cast<uint32_t*>(to));
            }
        }
    }
}

// The same in f32, or added to what is there: neighbouring lanes trade pairs, so that each has four
// columns, of one eight or the next.
__device__ __forceinline__ void store_chunks(float* out, const MatmulParams& p,
                                             const float (&acc)[SUMS], int row0, int col0) {
    const bool odd = lane_id() & 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + acc_row(2 * half);
#pragma unroll
        for (int j = 0; j < BN / 8; j += 2) {
            Pack<float, 4> chunk;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float here = acc[4 * j + 2 * half + i], next = acc[4 * j + 4 + 2 * half + i];
                const float got = __shfl_xor_sync(FULL_MASK, odd ? here : next, 1);
                chunk.v[i] = fmaf(p.alpha, odd ? got : here, 0.f);
                chunk.v[2 + i] = fmaf(p.alpha, odd ? next : got, 0.f);
            }
            const int col = col0 + (odd ? j + 1 : j) * 8 + lane_id() % 4 / 2 * 4;
            if (row >= p.m || col >= p.n) continue;
            float* const to = out + size_t(row) * size_t(p.n) + col;
            if (p.flags & MATMUL_ACC) {
                const auto old = Pack<float, 4>::load(to);
#pragma unroll
                for (int i = 0; i < 4; ++i) chunk.v[i] += old.v[i];
            }
            chunk.store(to);
        }
    }
}

// The outputs of one warp group of the tile that begins at [row0, col0].
__device__ __forceinline__ void store_group(void* out, const void* bias, const MatmulParams& p,
                                            const float (&acc)[SUMS], int group, int row0,
                                            int col0) {
    const int row = row0 + group * 64 + warp_id() % 4 * 16;
    const bool chunks = bias == nullptr && p.flags & MATMUL_CHUNKS;
    if (p.flags & MATMUL_OUT_BF16) {
        bf16* const to = static_cast<bf16*>(out);
        if (chunks && !(p.flags & MATMUL_ACC)) {
            store_chunks(to, p, acc, row, col0);
        } else {
            store_group_as(to, bias, p, acc, row, col0);
        }
    } else if (chunks) {
        store_chunks(static_cast<float*>(out), p, acc, row, col0);
    } else {
        store_group_as(static_cast<float*>(out), bias, p, acc, row, col0);
    }
}
