// Products of up to 16 rows of x with rows of weights, on tensor cores, as the weights arrive from
// memory: what skinny.cu and lora_skinny.cu share.
//
// The rows of x are the 16 rows of an mma, a warp has 8 rows of weights, and copies run
// SKINNY_STAGES
// - 1 stages ahead: what is under way has to cover the memory's latency. Inputs are not split over
// warps, so the chain of sums is that of matmul_tile.cuh: a row alone, in a batch or as part of a
// prompt has the same bits.
#pragma once

#include "matmul_tile.cuh"

// X: type of x. WARPS share the stage's rows of x.
template <class X_, int WARPS_, bool GATED_> struct SkinnyShape {
    using X = X_;
    static constexpr int WARPS = WARPS_, BK = SKINNY_BK, STAGES = SKINNY_STAGES;
    static constexpr bool GATED = GATED_;
    static constexpr int THREADS = WARPS * WARP, COLS = WARPS * SKINNY_COLS;
    // bf16 rows are permuted for ldmatrix, f32 rows padded for loads of pairs.
    static constexpr bool ROUNDS = sizeof(X) == 4;
    static constexpr int X_STRIDE = BK + (ROUNDS ? SKINNY_PAD : 0);
    static constexpr int X_BYTES = SKINNY_ROWS * X_STRIDE * int(sizeof(X));
    static constexpr int W_SIZE = COLS * BK;
    static constexpr int STAGE_BYTES = X_BYTES + (GATED ? 2 : 1) * W_SIZE * int(sizeof(bf16));
};

// Where chunk `chunk` of row `row` of a stage of x lies.
template <class S> __device__ __forceinline__ int x_at(int row, int col) {
    if constexpr (S::ROUNDS) {
        return row * S::X_STRIDE + col;
    } else {
        return swizzled<S::BK>(row, col);
    }
}

template <class S>
__device__ __forceinline__ void load_x(uint32_t (&a)[4], const typename S::X* xs, int k) {
    if constexpr (S::ROUNDS) {
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = g + i % 2 * 8, col = k + i / 2 * 8 + 2 * t;
            const auto pair = Pack<float, 2>::load(xs + x_at<S>(row, col));
            a[i] = pack_bf16(pair.v[0], pair.v[1]);
        }
    } else {
        load_a<S::BK>(a, xs, 0, k);
    }
}

// Fragments B of 8 rows of weights for inputs k.. and k + 16..
template <int COLS>
__device__ __forceinline__ void load_w2(uint32_t (&b)[2][2], const bf16* tile, int row, int k) {
    const int l = lane_id();
    uint32_t r[4];
    ldmatrix_x4(r, tile + swizzled<COLS>(row + l % 8, k + l / 8 * 8));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// acc[i] = x W_i^T for the 16 rows and this warp's 8 columns, those of the block beginning at col0;
// x [m, k], w and w3 (gated: the second product's weights) [n, k].
template <class S>
__device__ __forceinline__ void skinny_sums(Acc (&acc)[S::GATED ? 2 : 1], const typename S::X* x,
                                            const bf16* w, const bf16* w3, int col0, int m, int n,
                                            int k) {
    using X = typename S::X;
    DYN_SMEM(smem);
    constexpr int X_CHUNK = PER_16_BYTES<X>, X_CHUNKS = S::BK / X_CHUNK;
    constexpr int PRODUCTS = S::GATED ? 2 : 1;
    const int thread = int(threadIdx.x), stages = tiles_of(k, S::BK);
    auto xs_of = [&](int t) {
        return reinterpret_cast<X*>(smem + t % S::STAGES * S::STAGE_BYTES);
    };
    auto ws_of = [&](int t) {
        return reinterpret_cast<bf16*>(smem + t % S::STAGES * S::STAGE_BYTES + S::X_BYTES);
    };
    FactorCopy<false, S::COLS, S::THREADS, S::BK> copy_w, copy_w3;
    copy_w.begin(w, col0, n, k);
    if constexpr (S::GATED) copy_w3.begin(w3, col0, n, k);
    auto copy_stage = [&](int t) {
        const int k0 = t * S::BK;
        // Weights first: theirs is the way from memory.
        copy_w.copy(ws_of(t));
        if constexpr (S::GATED) copy_w3.copy(ws_of(t) + S::W_SIZE);
        for (int i = thread; i < m * X_CHUNKS; i += S::THREADS) {
            const int row = i / X_CHUNKS, col = i % X_CHUNKS * X_CHUNK;
            const bool inside = k0 + col < k;
            const X* from = inside ? x + int64_t(row) * k + k0 + col : x;
            cp_async16_zfill(xs_of(t) + x_at<S>(row, col), from, inside);
        }
    };

    // Rows that x lacks are zero in every stage; no copy touches them.
    for (int t = 0; t < S::STAGES; ++t) {
        for (int i = thread; i < (SKINNY_ROWS - m) * X_CHUNKS; i += S::THREADS) {
            const int row = m + i / X_CHUNKS, col = i % X_CHUNKS * X_CHUNK;
            const Pack<uint32_t, 4> zero = {0, 0, 0, 0};
            zero.store(reinterpret_cast<uint32_t*>(xs_of(t) + x_at<S>(row, col)));
        }
    }
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.f;
#pragma unroll
    for (int t = 0; t < S::STAGES - 1; ++t) {
        if (t < stages) copy_stage(t);
        cp_async_commit();
    }
    for (int t = 0; t < stages; ++t) {
        cp_async_wait<S::STAGES - 2>();
        __syncthreads();
        if (t + S::STAGES - 1 < stages) copy_stage(t + S::STAGES - 1);
        cp_async_commit();
        const X* const xs = xs_of(t);
        const bf16* const ws = ws_of(t);
#pragma unroll
        for (int at = 0; at < S::BK; at += 32) {
            uint32_t a[2][4], b[PRODUCTS][2][2];
            load_x<S>(a[0], xs, at);
            load_x<S>(a[1], xs, at + 16);
#pragma unroll
            for (int i = 0; i < PRODUCTS; ++i) {
                load_w2<S::BK>(b[i], ws + i * S::W_SIZE, warp_id() * SKINNY_COLS, at);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
                for (int i = 0; i < PRODUCTS; ++i) mma_bf16(acc[i], a[j], b[i][j]);
            }
        }
    }
}

// Writes a warp's outputs, columns col .. col + 8.
__device__ __forceinline__ void store_skinny(void* out, const void* bias, const MatmulParams& p,
                                             const Acc& acc, int col) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = acc_row(2 * half);
        if (row >= p.m) continue;
        const float v0 = acc[2 * half], v1 = acc[2 * half + 1];
        if (p.flags & MATMUL_OUT_BF16) {
            put_pair(static_cast<bf16*>(out), bias, p, row, col + acc_col(0), v0, v1);
        } else {
            put_pair(static_cast<float*>(out), bias, p, row, col + acc_col(0), v0, v1);
        }
    }
}
