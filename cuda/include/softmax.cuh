// The running softmax of attention on tensor cores, on the scores that a warp's accumulators hold,
// and the products around it: shared by flash_fwd.cu, flash_bwd.cu and attention_*.cu.
//
// A row's state is its largest score m (not yet scaled), the sum l of its exponentials relative to
// m, and sums o of values weighted by them. Exponentials are of base 2: p = 2^(c s - c m) with
// c = scale log2(e), which is exp(scale (s - m)).
//
// A row that has seen nothing has m = -inf, l = 0, o = 0. Seeing only hidden keys (s = -inf) leaves
// every bit of a state: the factor of what was is then exactly 1, what is added exactly 0.
//
// Source: Milakov and Gimelshein 2018 (arXiv 1805.02867); Dao 2023 (arXiv 2307.08691).
#pragma once

#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// First key that the query at `pos` sees; the last one is `pos` itself.
__device__ __forceinline__ int first_key(int pos, uint32_t window) {
    return uint32_t(pos) < window ? 0 : pos - int(window) + 1;
}

__device__ __forceinline__ bool sees(int query, int key, uint32_t window) {
    return key <= query && uint32_t(query - key) < window;
}

// Sum and maximum over the four lanes that hold a row of accumulators.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_MASK, x, 1);
    return x + __shfl_xor_sync(FULL_MASK, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
}

// What a sum relative to the maximum `from` is multiplied by to be relative to `to` >= `from`.
// Exactly 1 where they are equal, -inf included: the difference would be NaN there.
__device__ __forceinline__ float rescale(float from, float to, float c) {
    return from == to ? 1.f : ex2((from - to) * c);
}

template <int N> __device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[n][i] = 0.f;
    }
}

// Hides what the queries at `pos` of this lane's two rows do not see; the first key of `s` is `key`.
template <int NT>
__device__ __forceinline__ void hide(float (&s)[NT][4], const int (&pos)[2], int key,
                                     uint32_t window) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (!sees(pos[i / 2], key + n * 8 + acc_col(i), window)) s[n][i] = -INFINITY;
        }
    }
}

// Takes the scores of 8 NT more keys into the state of this lane's two rows and leaves their
// exponentials in `s`. `keep` is what the sums of before are to be multiplied by. l is this lane's
// part of the sum: quad_sum at the end. Exponentials, and with them l, are 2^lift times as large.
template <int NT>
__device__ __forceinline__ void soften(float (&s)[NT][4], float (&m)[2], float (&l)[2],
                                       float (&keep)[2], float c, float lift = 0.f) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float max = -INFINITY;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        max = fmaxf(m[half], quad_max(max));
        keep[half] = rescale(m[half], max, c);
        m[half] = max;
        // Nothing seen yet: 2^-inf without the NaN of -inf + inf.
        const float shift = max == -INFINITY ? 0.f : fmaf(-max, c, lift);
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[n][i] = ex2(fmaf(s[n][i], c, shift));
                sum += s[n][i];
            }
        }
        l[half] = fmaf(l[half], keep[half], sum);
    }
}

template <int NT>
__device__ __forceinline__ void scale_rows(float (&o)[NT][4], const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= by[i / 2];
    }
}

// s = a b^T for 16 MT rows of a tile a [.., HD] from a_row on and 8 NT rows of a tile b [.., HD]
// from b_row on: HD / 16 products in order.
template <int HD, int MT, int NT>
__device__ __forceinline__ void dots(float (&s)[MT][NT][4], const bf16* a, int a_row, const bf16* b,
                                     int b_row) {
    static_assert(NT % 2 == 0, "fragments are loaded in pairs");
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) clear(s[mt]);
    const int lane = opaque(lane_id());
    // Registers for a second step's fragments are there only where results are few.
    constexpr int UNROLL = MT > 1 ? 1 : 2;
#pragma unroll UNROLL
    for (int k = 0; k < HD; k += 16) {
        uint32_t fa[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) load_a<HD>(fa[mt], a, a_row + mt * 16, k, lane);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fb[2][2];
            load_b2<HD>(fb, b, b_row + n * 8, k, lane);
#pragma unroll
            for (int mt = 0; mt < MT; ++mt) {
                mma_bf16(s[mt][n], fa[mt], fb[0]);
                mma_bf16(s[mt][n + 1], fa[mt], fb[1]);
            }
        }
    }
}

// o += p b, p [16 MT, 8 KT] as accumulators hold it and rounded to bf16, b the first 8 KT rows of a
// tile [.., COLS], its columns from `col` on: KT / 2 products in order.
template <int COLS, int MT, int KT, int NT>
__device__ __forceinline__ void add_product(float (&o)[MT][NT][4], const float (&p)[MT][KT][4],
                                            const bf16* b, int col) {
    static_assert(KT % 2 == 0 && NT % 2 == 0, "fragments are loaded in pairs");
    const int lane = opaque(lane_id());
#pragma unroll
    for (int k = 0; k < KT; k += 2) {
        uint32_t fa[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) acc_to_a(fa[mt], p[mt][k], p[mt][k + 1]);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fb[2][2];
            load_b2_trans<COLS>(fb, b, k * 8, col + n * 8, lane);
#pragma unroll
            for (int mt = 0; mt < MT; ++mt) {
                mma_bf16(o[mt][n], fa[mt], fb[0]);
                mma_bf16(o[mt][n + 1], fa[mt], fb[1]);
            }
        }
    }
}
