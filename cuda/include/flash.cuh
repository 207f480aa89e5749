// What the kernels of flash_fwd.cu and flash_bwd.cu share: the place of a block's rows, copies of
// tiles of heads.
#pragma once

#include "flash.h"
#include "softmax.cuh"

// Rows of q, out and their gradients, or of k, v and theirs, of one head of one sequence.
template <class T> struct HeadRows {
    // Element 0 of the head in the sequence's first row.
    T* first;
    // Elements from a row to the next.
    int64_t stride;
    int head_dim;

    __device__ __forceinline__ HeadRows(T* base, const FlashTile& tile, uint32_t heads,
                                        uint32_t head, uint32_t head_dim)
        : first(base + (size_t(tile.start) * heads + head) * head_dim),
          stride(int64_t(heads) * head_dim), head_dim(int(head_dim)) {}

    __device__ __forceinline__ T* row(int pos) const { return first + pos * stride; }
};

// Rows pos .. pos + ROWS of a head as a tile [ROWS, HD]; zero from row `end` and from the width of
// the head on. ANY: whatever the alignment of rows, slowly; else rows are made of whole chunks.
// A loop of few registers: it runs while all others hold sums.
template <int ROWS, int HD, bool ANY>
__device__ __forceinline__ void copy_head(bf16* tile, const HeadRows<const bf16>& head, int pos,
                                          int end) {
    constexpr int CHUNKS = HD / CHUNK;
    // Threads of a row, and rows that all threads copy at once.
    constexpr int OF_ROW = (CHUNKS & (CHUNKS - 1)) == 0 ? CHUNKS : 8;
    constexpr int AT_ONCE = FLASH_THREADS / OF_ROW;
    static_assert(ROWS % AT_ONCE == 0, "all threads have rows");
    const bf16* const start = head.row(pos);
    const int rows = end - pos;
    if constexpr (ANY) {
        copy_tile_unaligned<ROWS, HD, FLASH_THREADS>(tile, start, head.stride, rows, head.head_dim,
                                                     int(threadIdx.x));
        return;
    }
    const int thread = opaque(int(threadIdx.x)), first = thread % OF_ROW * CHUNK;
    const bf16* from = start + thread / OF_ROW * head.stride + first;
#pragma unroll 1
    for (int row = thread / OF_ROW; row < ROWS; row += AT_ONCE) {
#pragma unroll
        for (int c = 0; c < HD; c += OF_ROW * CHUNK) {
            const int col = first + c;
            if (CHUNKS % OF_ROW != 0 && col >= HD) break;
            const bool valid = row < rows && col < head.head_dim;
            cp_async16_zfill(tile + swizzled<HD>(row, col), valid ? from + c : start, valid);
        }
        from += AT_ONCE * head.stride;
    }
}

// Two neighbouring elements of a row of gradients, of which those behind the head are left out.
__device__ __forceinline__ void put_pair(const HeadRows<float>& head, int pos, int col, float v0,
                                         float v1, uint32_t flags) {
    float* const to = head.row(pos) + col;
    if (flags & FLASH_PAIRS) {
        if (col < head.head_dim) Pack<float, 2>{{v0, v1}}.store(to);
    } else {
        if (col < head.head_dim) to[0] = v0;
        if (col + 1 < head.head_dim) to[1] = v1;
    }
}
