// Tiles of bf16 in shared memory and the fragments of mma.m16n8k16 read from them: shared by matmul
// and attention.
//
// A tile is [rows, COLS], row after row, COLS a multiple of 8. Its unit is a chunk of 8 elements,
// 16 bytes. Chunks of a row are permuted (`swizzled`) so that the 8 rows that one ldmatrix phase
// reads at the same column lie in 8 different groups of 4 banks.
//
// Which element a lane l holds, with g = l / 4 and t = l % 4 (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"); a register has two neighbouring elements, the lower index in its lower half:
//   a[0] = A[g][2t..], a[1] = A[g + 8][2t..], a[2] = A[g][2t + 8..], a[3] = A[g + 8][2t + 8..]
//   b[0] = B[2t..][g], b[1] = B[2t + 8..][g]
//   d[0], d[1] = D[g][2t], D[g][2t + 1];   d[2], d[3] = D[g + 8][2t], D[g + 8][2t + 1]
#pragma once

#include "ptx.cuh"

// Elements of a chunk.
constexpr int CHUNK = 8;

// Where element [row, col] of a tile stands. Rows at distance 8 / P fall on the same banks, P the
// largest power of two (at most 8) that divides the chunks of a row; so such rows differ in the low
// log2(P) bits of their chunk's place.
template <int COLS> __device__ __forceinline__ int swizzled(int row, int col) {
    static_assert(COLS % CHUNK == 0 && COLS > 0, "a tile's rows are whole chunks");
    constexpr int CHUNKS = COLS / CHUNK;
    constexpr int P = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    const int chunk = (col / CHUNK) ^ ((row / (8 / P)) & (P - 1));
    return row * COLS + chunk * CHUNK + col % CHUNK;
}

// Copies the tile [ROWS, COLS] that begins at `from`, whose rows lie `stride` elements apart, by
// cp.async; rows from `rows` on and columns from `cols` on become zero and are not read. All
// THREADS threads of the block call, `thread` being the caller's number among them; commit, wait and
// barrier are the caller's.
//
// `from` is 16-byte aligned and `stride` a multiple of 8; `copy_tile_unaligned` stands beside for
// what is not.
template <int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, int64_t stride, int64_t rows,
                                          int64_t cols, int thread PUNA_AT) {
    constexpr int CHUNKS = COLS / CHUNK;
#pragma unroll
    for (int first = 0; first < ROWS * CHUNKS; first += THREADS) {
        const int i = first + thread;
        if (ROWS * CHUNKS % THREADS != 0 && i >= ROWS * CHUNKS) break;
        const int row = i / CHUNKS, col = i % CHUNKS * CHUNK;
        const int64_t left = row < rows ? cols - col : 0;
        const int valid = left >= CHUNK ? CHUNK : left > 0 ? int(left) : 0;
        // An address outside the matrix is never formed.
        const bf16* source = valid > 0 ? from + row * stride + col : from;
        cp_async16_part(tile + swizzled<COLS>(row, col), source, valid * 2 PUNA_PASS);
    }
}

// The same for any address and stride, element by element through registers. It is done when it
// returns, so commit and wait around it do no harm.
template <int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void copy_tile_unaligned(bf16* tile, const bf16* from, int64_t stride,
                                                    int64_t rows, int64_t cols, int thread) {
    for (int i = thread; i < ROWS * COLS; i += THREADS) {
        const int row = i / COLS, col = i % COLS;
        const bool valid = row < rows && col < cols;
        tile[swizzled<COLS>(row, col)] = valid ? from[row * stride + col] : from_f32<bf16>(0.f);
    }
}

// Loads of fragments take the caller's lane where it is to be an `opaque` one.

// Fragment A [16, 16] at [row, k] of a tile [rows, k]: k runs along the tile's rows.
template <int COLS>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int row, int k,
                                       int l = lane_id() PUNA_AT) {
    ldmatrix_x4(a, tile + swizzled<COLS>(row + l % 16, k + l / 16 * 8) PUNA_PASS);
}

// Fragment A [16, 16] at [k, row] of a tile [k, rows]: the factor is stored transposed.
template <int COLS>
__device__ __forceinline__ void load_a_trans(uint32_t (&a)[4], const bf16* tile, int k,
                                             int row PUNA_AT) {
    const int l = lane_id();
    ldmatrix_x4_trans(
        a, tile + swizzled<COLS>(k + l / 16 * 8 + l % 8, row + l / 8 % 2 * 8) PUNA_PASS);
}

// Fragments B [16, 8] of columns col.. and col + 8.. at [col, k] of a tile [cols, k]: k runs along
// the tile's rows, as in x W^T.
template <int COLS>
__device__ __forceinline__ void load_b2(uint32_t (&b)[2][2], const bf16* tile, int col,
                                        int k, int l = lane_id() PUNA_AT) {
    uint32_t r[4];
    ldmatrix_x4(r, tile + swizzled<COLS>(col + l / 16 * 8 + l % 8, k + l / 8 % 2 * 8) PUNA_PASS);
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// The same two at [k, col] of a tile [k, cols].
template <int COLS>
__device__ __forceinline__ void load_b2_trans(uint32_t (&b)[2][2], const bf16* tile, int k,
                                              int col, int l = lane_id() PUNA_AT) {
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + swizzled<COLS>(k + l % 16, col + l / 16 * 8) PUNA_PASS);
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// Row and column within [16, 8] of element `i` of an accumulator d[4].
__device__ __forceinline__ int acc_row(int i) { return lane_id() / 4 + i / 2 * 8; }
__device__ __forceinline__ int acc_col(int i) { return lane_id() % 4 * 2 + i % 2; }

// Two neighbouring accumulators [16, 8], rounded to bf16, as a fragment A [16, 16]: a product's
// result becomes a factor without leaving the registers.
__device__ __forceinline__ void acc_to_a(uint32_t (&a)[4], const float (&left)[4],
                                         const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}
