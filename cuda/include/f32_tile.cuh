// Tiles of f32 heads and their products without tensor cores: what attention in f32 is made of
// (flash_f32.cu, attention_f32.cu).
//
// A block of 128 threads is 8 rows of 16: a thread has rows thread_row() + 8 i and columns
// thread_col() + 16 j of every product. Each output is one chain of fused multiply-adds over the
// summed index in order, whatever the tile's sizes.
#pragma once

#include "flash.h"
#include "softmax.cuh"

constexpr int TILE_COLS = 16;
constexpr int TILE_ROWS = FLASH_THREADS / TILE_COLS;
static_assert(TILE_COLS == WARP / 2, "a row's threads are half a warp");

__device__ __forceinline__ int thread_row() { return int(threadIdx.x) / TILE_COLS; }
__device__ __forceinline__ int thread_col() { return int(threadIdx.x) % TILE_COLS; }

// Elements of a row of a tile [.., HD].
template <int HD> constexpr int F32_PITCH = HD + FLASH_F32_PAD;

// Sum and maximum over the 16 threads of a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int distance = TILE_COLS / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(FULL_MASK, x, distance);
    }
    return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int distance = TILE_COLS / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, distance));
    }
    return x;
}

// A tile [ROWS, HD] whose row r comes from `row(r)`, null for a row of zeroes; elements from
// `head_dim` on are zero. `vectors`: rows are made of whole chunks of 16 bytes, copied by cp.async.
template <int ROWS, int HD, class Row>
__device__ __forceinline__ void copy_f32_tile(float* tile, int head_dim, bool vectors, Row row) {
    constexpr int PACK = 4, PACKS = HD / PACK;
    for (int i = int(threadIdx.x); i < ROWS * PACKS; i += FLASH_THREADS) {
        const int r = i / PACKS, col = i % PACKS * PACK;
        const float* const from = row(r);
        float* const to = tile + r * F32_PITCH<HD> + col;
        if (from == nullptr || col >= head_dim) {
            Pack<float, PACK>{}.store(to);
        } else if (vectors) {
            cp_async16(to, from + col);
        } else {
#pragma unroll
            for (int j = 0; j < PACK; ++j) to[j] = col + j < head_dim ? from[col + j] : 0.f;
        }
    }
}

// s = a b^T for tiles a [8 RI, HD] and b [16 CJ, HD].
template <int HD, int RI, int CJ>
__device__ __forceinline__ void dots_f32(float (&s)[RI][CJ], const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < RI; ++i) {
#pragma unroll
        for (int j = 0; j < CJ; ++j) s[i][j] = 0.f;
    }
    const float* const a_row = a + thread_row() * F32_PITCH<HD>;
    const float* const b_row = b + thread_col() * F32_PITCH<HD>;
#pragma unroll 4
    for (int d = 0; d < HD; d += 4) {
        Pack<float, 4> x[RI], y[CJ];
#pragma unroll
        for (int i = 0; i < RI; ++i) {
            x[i] = Pack<float, 4>::load(a_row + i * TILE_ROWS * F32_PITCH<HD> + d);
        }
#pragma unroll
        for (int j = 0; j < CJ; ++j) {
            y[j] = Pack<float, 4>::load(b_row + j * TILE_COLS * F32_PITCH<HD> + d);
        }
#pragma unroll
        for (int i = 0; i < RI; ++i) {
#pragma unroll
            for (int j = 0; j < CJ; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) s[i][j] = fmaf(x[i].v[e], y[j].v[e], s[i][j]);
            }
        }
    }
}

// Puts a thread's part of a product [8 RI, 16 CJ] into `p`, whose rows are one element longer.
template <int RI, int CJ>
__device__ __forceinline__ void put_f32(float* p, const float (&s)[RI][CJ]) {
#pragma unroll
    for (int i = 0; i < RI; ++i) {
#pragma unroll
        for (int j = 0; j < CJ; ++j) {
            const int row = thread_row() + i * TILE_ROWS, col = thread_col() + j * TILE_COLS;
            p[row * (CJ * TILE_COLS + 1) + col] = s[i][j];
        }
    }
}

// o += p b for p [8 RI, DEPTH] as `put_f32` left it and a tile b [DEPTH, HD].
template <int HD, int DEPTH, int RI>
__device__ __forceinline__ void add_product_f32(float (&o)[RI][HD / TILE_COLS], const float* p,
                                                const float* b) {
#pragma unroll 4
    for (int n = 0; n < DEPTH; ++n) {
        float x[RI];
#pragma unroll
        for (int i = 0; i < RI; ++i) x[i] = p[(thread_row() + i * TILE_ROWS) * (DEPTH + 1) + n];
#pragma unroll
        for (int j = 0; j < HD / TILE_COLS; ++j) {
            const float y = b[n * F32_PITCH<HD> + thread_col() + j * TILE_COLS];
#pragma unroll
            for (int i = 0; i < RI; ++i) o[i][j] = fmaf(x[i], y, o[i][j]);
        }
    }
}

template <int RI, int DJ> __device__ __forceinline__ void clear_f32(float (&o)[RI][DJ]) {
#pragma unroll
    for (int i = 0; i < RI; ++i) {
#pragma unroll
        for (int j = 0; j < DJ; ++j) o[i][j] = 0.f;
    }
}

// `soften` (softmax.cuh) for a row's scores spread over its 16 threads: returns the factor of what
// was summed before. l is this thread's part of the sum: row_sum at the end.
template <int CJ>
__device__ __forceinline__ float soften_f32(float (&s)[CJ], float& m, float& l, float c) {
    float max = s[0];
#pragma unroll
    for (int j = 1; j < CJ; ++j) max = fmaxf(max, s[j]);
    max = fmaxf(m, row_max(max));
    const float keep = rescale(m, max, c);
    m = max;
    const float shift = max == -INFINITY ? 0.f : -max * c;
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < CJ; ++j) {
        s[j] = ex2(fmaf(s[j], c, shift));
        sum += s[j];
    }
    l = fmaf(l, keep, sum);
    return keep;
}
