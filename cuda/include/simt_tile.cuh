// Tiled products without tensor cores: what matmul_f32.cu and quant_f32.cu share.
//
// Order of summation: an output element is one chain of fused multiply-adds over its inputs in
// order, from zero, whatever the tile; so a row has the same bits in any company.
#pragma once

#include "matmul_tile.cuh"
#include "operand.cuh"

// A block's tile [BM, BN]; a thread has TM x TN outputs in groups of 4 x 4, groups of a kind lying
// next to each other over the threads: a warp then reads shared memory without conflicts.
template <int BM_, int BN_, int TM_, int TN_> struct SimtShape {
    static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_, BK = MATMUL_F32_BK;
    static constexpr int ACROSS = BN / TN, THREADS = BM / TM * ACROSS;
    static constexpr int A_STRIDE = BM + MATMUL_F32_PAD, B_STRIDE = BN + MATMUL_F32_PAD;
    static constexpr int STAGE = BK * (A_STRIDE + B_STRIDE);
};

// A thread's chunk of one factor's next stage, which lies [BK, TILE] in shared memory.
template <int TILE, int THREADS> struct SimtAhead {
    static constexpr int BK = MATMUL_F32_BK, STRIDE = TILE + MATMUL_F32_PAD;
    static_assert(TILE * BK == READ * THREADS, "one chunk a thread");
    float v[READ];

    // `x` reads the 8 numbers from [row, col] of what is stored on; `x.k_inner`: that is [lanes, k],
    // else [k, lanes].
    template <class Source>
    __device__ __forceinline__ void read(const Source& x, int first, int k0, int lanes, int k) {
        const int i = int(threadIdx.x);
        // Neighbouring threads have neighbouring lanes in both cases, for the stores' sake.
        const int64_t lane = first + (x.k_inner ? i % TILE : i % (TILE / READ) * READ);
        const int64_t input = k0 + (x.k_inner ? i / TILE * READ : i / (TILE / READ));
        const bool inside = lane < lanes && input < k;
        if (x.k_inner) {
            x.read(v, lane, input, k, inside);
        } else {
            x.read(v, input, lane, lanes, inside);
        }
    }

    __device__ __forceinline__ void store(float* tile, bool k_inner) const {
        const int i = int(threadIdx.x);
        if (k_inner) {
#pragma unroll
            for (int j = 0; j < READ; ++j) tile[(i / TILE * READ + j) * STRIDE + i % TILE] = v[j];
            return;
        }
        float* to = tile + i / (TILE / READ) * STRIDE + i % (TILE / READ) * READ;
        const Pack<float, 4> lo = {v[0], v[1], v[2], v[3]}, hi = {v[4], v[5], v[6], v[7]};
        lo.store(to), hi.store(to + 4);
    }
};

// A factor as it is stored, of whatever type.
struct StoredSource {
    Operand x;
    bool k_inner;
    // Elements [row, col] to col + 8 of rows of `cols`; those outside are zero.
    __device__ __forceinline__ void read(float (&v)[READ], int64_t row, int64_t col, int cols,
                                         bool inside) const {
        read_chunk(v, x, inside ? size_t(row) * cols + col : 0, inside ? cols - col : 0);
    }
};

template <class S, class B>
__device__ __forceinline__ void simt_product(void* out, const StoredSource& a, const B& b,
                                             const void* bias, const MatmulParams& p) {
    DYN_SMEM(smem);
    float* const stages = reinterpret_cast<float*>(smem);
    const int thread = int(threadIdx.x), tx = thread % S::ACROSS, ty = thread / S::ACROSS;
    const TileAt at = tile_at(blockIdx.x, tiles_of(p.m, S::BM), tiles_of(p.n, S::BN));
    const int row0 = at.row * S::BM, col0 = at.col * S::BN;
    const int n_stages = tiles_of(p.k, S::BK);

    SimtAhead<S::BM, S::THREADS> ahead_a;
    SimtAhead<S::BN, S::THREADS> ahead_b;
    auto read = [&](int t) {
        ahead_a.read(a, row0, t * S::BK, p.m, p.k);
        ahead_b.read(b, col0, t * S::BK, p.n, p.k);
    };
    auto store = [&](int t) {
        float* const as = stages + t % 2 * S::STAGE;
        ahead_a.store(as, a.k_inner);
        ahead_b.store(as + S::BK * S::A_STRIDE, b.k_inner);
    };

    float acc[S::TM][S::TN] = {};
    if (n_stages > 0) {
        read(0);
        store(0);
    }
    __syncthreads();
    for (int t = 0; t < n_stages; ++t) {
        if (t + 1 < n_stages) read(t + 1);
        const float* const as = stages + t % 2 * S::STAGE;
        const float* const bs = as + S::BK * S::A_STRIDE;
#pragma unroll
        for (int k = 0; k < S::BK; ++k) {
            float x[S::TM], w[S::TN];
#pragma unroll
            for (int i = 0; i < S::TM; i += 4) {
                const auto four = Pack<float, 4>::load(
                    as + k * S::A_STRIDE + i / 4 * (S::BM / (S::TM / 4)) + ty * 4);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[i + j] = four.v[j];
            }
#pragma unroll
            for (int i = 0; i < S::TN; i += 4) {
                const auto four = Pack<float, 4>::load(
                    bs + k * S::B_STRIDE + i / 4 * (S::BN / (S::TN / 4)) + tx * 4);
#pragma unroll
                for (int j = 0; j < 4; ++j) w[i + j] = four.v[j];
            }
#pragma unroll
            for (int i = 0; i < S::TM; ++i) {
#pragma unroll
                for (int j = 0; j < S::TN; ++j) acc[i][j] = fmaf(x[i], w[j], acc[i][j]);
            }
        }
        if (t + 1 < n_stages) store(t + 1);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < S::TM; ++i) {
        const int row = row0 + i / 4 * (S::BM / (S::TM / 4)) + ty * 4 + i % 4;
        if (row >= p.m) continue;
#pragma unroll
        for (int j = 0; j < S::TN; j += 2) {
            const int col = col0 + j / 4 * (S::BN / (S::TN / 4)) + tx * 4 + j % 4;
            if (p.flags & MATMUL_OUT_BF16) {
                put_pair(static_cast<bf16*>(out), bias, p, row, col, acc[i][j], acc[i][j + 1]);
            } else {
                put_pair(static_cast<float*>(out), bias, p, row, col, acc[i][j], acc[i][j + 1]);
            }
        }
    }
}
