// Tiled products on tensor cores: what matmul_bf16.cu, matmul_any.cu, matmul_gated.cu and lora.cu
// share.
//
//   for each stage of BK inputs             copied ahead into a ring in shared memory
//     for 16 inputs of the stage            fragments from shared memory
//       acc[mi][ni] += a[mi] b[ni]          one mma.m16n8k16 each, f32 sums
//   out = alpha acc + bias (+ out)
//
// Order of summation, the same in every kernel that uses mma (skinny.cu too): an output element is
// one chain of mma.m16n8k16 over its inputs in order, 16 at a time, from zero; inputs behind the
// last are zero. Tile sizes, m, n and an element's place in its tile are no part of the chain, so a
// row has the same bits alone and in any company.
#pragma once

#include "mma.cuh"
#include "matmul.h"

// A block's tile of the output [BM, BN] and how warps share it. TA, TB: a, b is the transpose of
// what is stored. GATED: half of the columns belong to b, half to its companion; a warp has the
// same columns of both.
template <int BM_, int BN_, int WARPS_M_, int WARPS_N_, bool TA_, bool TB_, bool GATED_ = false>
struct TileShape {
    static constexpr int BM = BM_, BN = BN_, BK = MATMUL_BK;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr bool TA = TA_, TB = TB_, GATED = GATED_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    // Fragments of a warp.
    static constexpr int MI = BM / WARPS_M / 16, NI = BN / WARPS_N / 8;
    // The tiles in shared memory lie as the factors are stored.
    static constexpr int A_ROWS = TA ? BK : BM, A_COLS = TA ? BM : BK;
    static constexpr int B_ROWS = TB ? BN : BK, B_COLS = TB ? BK : BN;
    static constexpr int A_SIZE = BM * BK, STAGE = (BM + BN) * BK;
    // Columns of the output that a block computes.
    static constexpr int OUT_COLS = GATED ? BN / 2 : BN;
    static_assert(NI % (GATED ? 4 : 2) == 0, "fragments of b are loaded in pairs");
    static_assert(!GATED || TB, "gated products are x W^T");

    // First column, within the block's tile of b, of a warp's fragment ni.
    static __device__ __forceinline__ int col(int warp_n, int ni) {
        if (!GATED) return (warp_n * NI + ni) * 8;
        return (ni < NI / 2 ? 0 : BN / 2) + (warp_n * (NI / 2) + ni % (NI / 2)) * 8;
    }
};

using Acc = float[4];

// One stage: `as` and `bs` are its tiles.
template <class S>
__device__ __forceinline__ void multiply_stage(Acc (&acc)[S::MI][S::NI], const bf16* as,
                                               const bf16* bs, int warp_m, int warp_n) {
#pragma unroll
    for (int k = 0; k < S::BK; k += 16) {
        uint32_t a[S::MI][4], b[S::NI / 2][2][2];
#pragma unroll
        for (int mi = 0; mi < S::MI; ++mi) {
            const int row = (warp_m * S::MI + mi) * 16;
            if constexpr (S::TA) {
                load_a_trans<S::A_COLS>(a[mi], as, k, row);
            } else {
                load_a<S::A_COLS>(a[mi], as, row, k);
            }
        }
#pragma unroll
        for (int j = 0; j < S::NI / 2; ++j) {
            const int col = S::col(warp_n, 2 * j);
            if constexpr (S::TB) {
                load_b2<S::B_COLS>(b[j], bs, col, k);
            } else {
                load_b2_trans<S::B_COLS>(b[j], bs, k, col);
            }
        }
#pragma unroll
        for (int mi = 0; mi < S::MI; ++mi) {
#pragma unroll
            for (int ni = 0; ni < S::NI; ++ni) mma_bf16(acc[mi][ni], a[mi], b[ni / 2][ni % 2]);
        }
    }
}

template <int MI, int NI> __device__ __forceinline__ void clear(Acc (&acc)[MI][NI]) {
#pragma unroll
    for (int mi = 0; mi < MI; ++mi) {
#pragma unroll
        for (int ni = 0; ni < NI; ++ni) {
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[mi][ni][i] = 0.f;
        }
    }
}

struct TileAt {
    int row, col;
};

// The tile of block `block`: MATMUL_GROUP tiles of rows, column after column, then the next group.
__device__ __forceinline__ TileAt tile_at(unsigned block, int tiles_m, int tiles_n) {
    const unsigned per_group = unsigned(MATMUL_GROUP) * unsigned(tiles_n);
    const unsigned group = block / per_group, i = block % per_group;
    const unsigned first = group * MATMUL_GROUP;
    const unsigned rows = min(unsigned(MATMUL_GROUP), unsigned(tiles_m) - first);
    return {int(first + i % rows), int(i / rows)};
}

__device__ __forceinline__ int tiles_of(int n, int tile) { return (n + tile - 1) / tile; }

// x / (1 + e^-x); where e^-x overflows, the zero that the true value is next to.
__device__ __forceinline__ float silu(float x) { return x / (1.f + expf(-x)); }

template <class O>
__device__ __forceinline__ void store_pair(O* to, const MatmulParams& p, float v0, float v1) {
    Pack<O, 2> pair;
    if (p.flags & MATMUL_ACC) {
        pair = Pack<O, 2>::load(to);
        v0 += to_f32(pair.v[0]), v1 += to_f32(pair.v[1]);
    }
    pair.v[0] = from_f32<O>(v0), pair.v[1] = from_f32<O>(v1);
    pair.store(to);
}

// Writes two neighbouring outputs, [row, col] and [row, col + 1], of a row of n.
template <class O>
__device__ __forceinline__ void put_pair(O* out, const void* bias, const MatmulParams& p,
                                         size_t row, int col, float v0, float v1) {
    if (col >= p.n) return;
    const bool both = col + 1 < p.n;
    float v[2] = {0.f, 0.f};
    if (bias != nullptr) {
        for (int i = 0; i < 1 + both; ++i) {
            v[i] = p.flags & MATMUL_BIAS_BF16 ? to_f32(static_cast<const bf16*>(bias)[col + i])
                                              : static_cast<const float*>(bias)[col + i];
        }
    }
    // Written as one operation, which the compiler could otherwise join in one kernel and not in
    // another: their bits have to agree.
    v[0] = fmaf(p.alpha, v0, v[0]), v[1] = fmaf(p.alpha, v1, v[1]);
    O* to = out + row * size_t(p.n) + col;
    if (both && p.flags & MATMUL_PAIRS) {
        store_pair(to, p, v[0], v[1]);
        return;
    }
    for (int i = 0; i < 1 + both; ++i) {
        if (p.flags & MATMUL_ACC) v[i] += to_f32(to[i]);
        to[i] = from_f32<O>(v[i]);
    }
}

// The same with pairs and without a bias: what nearly all products are, in few instructions.
template <class O>
__device__ __forceinline__ void put_plain_pair(O* out, const MatmulParams& p, size_t row, int col,
                                               float v0, float v1) {
    if (col >= p.n) return;
    O* to = out + row * size_t(p.n) + col;
    store_pair(to, p, fmaf(p.alpha, v0, 0.f), fmaf(p.alpha, v1, 0.f));
}

__device__ __forceinline__ bool is_plain(const void* bias, const MatmulParams& p) {
    return bias == nullptr && p.flags & MATMUL_PAIRS;
}

// A warp's part of a block's tile, which begins at column col0 of the output. `row_of(row)` says
// which row of the output a row of the tile is, or -1. PLAIN: `is_plain`.
template <class S, bool PLAIN, class O, class RowOf>
__device__ __forceinline__ void store_tile_as(O* out, const void* bias, const MatmulParams& p,
                                              const Acc (&acc)[S::MI][S::NI], int col0, int warp_m,
                                              int warp_n, RowOf row_of) {
    constexpr int NI = S::GATED ? S::NI / 2 : S::NI;
#pragma unroll
    for (int mi = 0; mi < S::MI; ++mi) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t row = row_of((warp_m * S::MI + mi) * 16 + acc_row(2 * half));
            if (row < 0) continue;
#pragma unroll
            for (int ni = 0; ni < NI; ++ni) {
                float v0 = acc[mi][ni][2 * half], v1 = acc[mi][ni][2 * half + 1];
                if constexpr (S::GATED) {
                    v0 = silu(v0) * acc[mi][ni + NI][2 * half];
                    v1 = silu(v1) * acc[mi][ni + NI][2 * half + 1];
                }
                const int col = col0 + S::col(warp_n, ni) + acc_col(0);
                if constexpr (PLAIN) {
                    put_plain_pair(out, p, size_t(row), col, v0, v1);
                } else {
                    put_pair(out, bias, p, size_t(row), col, v0, v1);
                }
            }
        }
    }
}

template <class S, class RowOf>
__device__ __forceinline__ void store_tile(void* out, const void* bias, const MatmulParams& p,
                                           const Acc (&acc)[S::MI][S::NI], int col0, int warp_m,
                                           int warp_n, RowOf row_of) {
    bf16* const low = static_cast<bf16*>(out);
    float* const full = static_cast<float*>(out);
    const bool plain = is_plain(bias, p);
    if (p.flags & MATMUL_OUT_BF16) {
        if (plain) {
            store_tile_as<S, true>(low, bias, p, acc, col0, warp_m, warp_n, row_of);
        } else {
            store_tile_as<S, false>(low, bias, p, acc, col0, warp_m, warp_n, row_of);
        }
    } else if (plain) {
        store_tile_as<S, true>(full, bias, p, acc, col0, warp_m, warp_n, row_of);
    } else {
        store_tile_as<S, false>(full, bias, p, acc, col0, warp_m, warp_n, row_of);
    }
}

// The copies of a factor, stage after stage, by cp.async: a tile of TILE of its `lanes` (rows of a,
// columns of b) by BK inputs, as it is stored: [lanes, k], or T: [k, lanes]. What a thread copies
// lies at one distance, in memory and in the tile, so that a copy costs few instructions.
//
// The factor is 16-byte aligned and its rows are a multiple of 8, so no chunk is cut. Chunks
// outside become zero; an address behind the end may be formed for them and is not read.
template <bool T, int TILE, int THREADS, int BK = MATMUL_BK> struct FactorCopy {
    static constexpr int ROWS = T ? BK : TILE, COLS = T ? TILE : BK, PER_ROW = COLS / CHUNK;
    static constexpr int STEP = THREADS / PER_ROW, N = (ROWS + STEP - 1) / STEP;
    static_assert(THREADS % PER_ROW == 0, "a thread's chunks stand in one column");

    const bf16* from;
    // Between this thread's chunks, and from stage to stage.
    int64_t step, advance;
    // Lanes, and inputs, from this thread's first chunk to the end; negative behind it.
    int lanes_left, inputs_left;
    int row, col;

    __device__ __forceinline__ void begin(const bf16* base, int first, int lanes, int k) {
        row = int(threadIdx.x) / PER_ROW, col = int(threadIdx.x) % PER_ROW * CHUNK;
        const int64_t stride = T ? lanes : k;
        step = STEP * stride;
        advance = T ? BK * stride : BK;
        from = base + (T ? row * stride + first + col : (first + row) * stride + col);
        lanes_left = lanes - first - (T ? col : row);
        inputs_left = k - (T ? row : col);
    }

    // The next stage's tile.
    __device__ __forceinline__ void copy(bf16* tile) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (ROWS % STEP != 0 && row + i * STEP >= ROWS) break;
            const bool inside = (T ? lanes_left : inputs_left) > 0 &&
                                (T ? inputs_left : lanes_left) > i * STEP;
            // Every 8 rows the permutation of chunks repeats.
            const int at = STEP % 8 == 0 ? swizzled<COLS>(row, col) + i * STEP * COLS
                                         : swizzled<COLS>(row + i * STEP, col);
            cp_async16_zfill(tile + at, from + i * step, inside);
        }
        from += advance;
        inputs_left -= BK;
    }
};

// The body of the kernels whose factors are bf16, 16-byte aligned, in rows of a multiple of 8.
// TWO: a second pair of factors, k2 inputs, follows the first in the same chain.
template <class S, bool TWO>
__device__ __forceinline__ void tile_product(void* out, const bf16* a, const bf16* b,
                                             const bf16* a2, const bf16* b2, const void* bias,
                                             const MatmulParams& p) {
    static_assert(!(TWO && S::GATED), "one use of b2");
    DYN_SMEM(smem);
    bf16* const ring = reinterpret_cast<bf16*>(smem);
    const int warp_m = warp_id() / S::WARPS_N, warp_n = warp_id() % S::WARPS_N;
    const TileAt at = tile_at(blockIdx.x, tiles_of(p.m, S::BM), tiles_of(p.n, S::OUT_COLS));
    const int row0 = at.row * S::BM, col0 = at.col * S::OUT_COLS;
    const int first_stages = tiles_of(p.k, S::BK);
    const int stages = first_stages + (TWO ? tiles_of(p.k2, S::BK) : 0);

    FactorCopy<S::TA, S::BM, S::THREADS> copy_a;
    FactorCopy<!S::TB, S::GATED ? S::BN / 2 : S::BN, S::THREADS> copy_b;
    FactorCopy<!S::TB, S::BN / 2, S::THREADS> copy_b2;
    copy_a.begin(a, row0, p.m, p.k);
    copy_b.begin(b, col0, p.n, p.k);
    if constexpr (S::GATED) copy_b2.begin(b2, col0, p.n, p.k);
    auto copy_stage = [&](int t) {
        bf16* const as = ring + t % MATMUL_STAGES * S::STAGE;
        bf16* const bs = as + S::A_SIZE;
        if (TWO && t == first_stages) {
            copy_a.begin(a2, row0, p.m, p.k2);
            copy_b.begin(b2, col0, p.n, p.k2);
        }
        copy_a.copy(as);
        copy_b.copy(bs);
        if constexpr (S::GATED) copy_b2.copy(bs + S::BN / 2 * S::BK);
    };

    Acc acc[S::MI][S::NI];
    clear(acc);
#pragma unroll
    for (int t = 0; t < MATMUL_STAGES - 1; ++t) {
        if (t < stages) copy_stage(t);
        cp_async_commit();
    }
    for (int t = 0; t < stages; ++t) {
        // This stage has landed for this thread; after the barrier for all of them, and all have
        // left the stage before, whose place the next copies take.
        cp_async_wait<MATMUL_STAGES - 2>();
        __syncthreads();
        if (t + MATMUL_STAGES - 1 < stages) copy_stage(t + MATMUL_STAGES - 1);
        cp_async_commit();
        const bf16* const as = ring + t % MATMUL_STAGES * S::STAGE;
        multiply_stage<S>(acc, as, as + S::A_SIZE, warp_m, warp_n);
    }
    store_tile<S>(out, bias, p, acc, col0, warp_m, warp_n, [&](int row) {
        return row0 + row < p.m ? int64_t(row0) + row : int64_t(-1);
    });
}
