// The products of matmul_bf16.cu and matmul_gated.cu for factors of any element type, length of row
// and alignment: numbers are read through registers, rounded to bf16 and stored to shared memory.
//
// Formula, shapes and order of sums are theirs; so are the bits, where the factors are the same.
// One stage is read ahead in registers while the one before is multiplied. Why no copy of the
// factors in bf16 instead: it would need a buffer as large as they are, and the products that come
// here are those with an adapter's f32 factors, which are small, and shapes that no usual model
// has.
#include "include/matmul_tile.cuh"
#include "include/operand.cuh"

namespace {

// A thread's chunks of one factor's next stage.
template <int ROWS, int COLS, int THREADS> struct Ahead {
    static constexpr int PER_ROW = COLS / READ, CHUNKS = ROWS * PER_ROW / THREADS;
    static_assert(ROWS * PER_ROW % THREADS == 0, "every thread has as many chunks");
    float v[CHUNKS][READ];

    __device__ __forceinline__ void read(const Operand& x, int row0, int col0, int rows, int cols) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int i = c * THREADS + int(threadIdx.x);
            const int64_t row = row0 + i / PER_ROW, col = col0 + i % PER_ROW * READ;
            const int64_t left = row < rows && col < cols ? cols - col : 0;
            read_chunk(v[c], x, left > 0 ? size_t(row) * cols + col : 0, left);
        }
    }

    __device__ __forceinline__ void store(bf16* tile) const {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int i = c * THREADS + int(threadIdx.x);
            bf16* to = tile + swizzled<COLS>(i / PER_ROW, i % PER_ROW * READ);
            round_chunk(v[c]).store(reinterpret_cast<uint32_t*>(to));
        }
    }
};

template <class S>
__device__ __forceinline__ void any_product(void* out, const Operand& a, const Operand& b,
                                            const Operand& b2, const void* bias,
                                            const MatmulParams& p) {
    DYN_SMEM(smem);
    bf16* const stages = reinterpret_cast<bf16*>(smem);
    const int warp_m = warp_id() / S::WARPS_N, warp_n = warp_id() % S::WARPS_N;
    const TileAt at = tile_at(blockIdx.x, tiles_of(p.m, S::BM), tiles_of(p.n, S::OUT_COLS));
    const int row0 = at.row * S::BM, col0 = at.col * S::OUT_COLS;
    const int n_stages = tiles_of(p.k, S::BK);

    Ahead<S::A_ROWS, S::A_COLS, S::THREADS> ahead_a;
    // A gated product's tile of b has its companion's rows behind its own.
    Ahead<S::GATED ? S::B_ROWS / 2 : S::B_ROWS, S::B_COLS, S::THREADS> ahead_b;
    Ahead<S::B_ROWS / 2, S::B_COLS, S::THREADS> ahead_b2;
    auto read = [&](int t) {
        const int k0 = t * S::BK;
        if constexpr (S::TA) {
            ahead_a.read(a, k0, row0, p.k, p.m);
        } else {
            ahead_a.read(a, row0, k0, p.m, p.k);
        }
        if constexpr (S::TB) {
            ahead_b.read(b, col0, k0, p.n, p.k);
        } else {
            ahead_b.read(b, k0, col0, p.k, p.n);
        }
        if constexpr (S::GATED) ahead_b2.read(b2, col0, k0, p.n, p.k);
    };
    auto store = [&](int t) {
        bf16* const as = stages + t % 2 * S::STAGE;
        ahead_a.store(as);
        ahead_b.store(as + S::A_SIZE);
        if constexpr (S::GATED) ahead_b2.store(as + S::A_SIZE + S::B_ROWS / 2 * S::B_COLS);
    };

    Acc acc[S::MI][S::NI];
    clear(acc);
    if (n_stages > 0) {
        read(0);
        store(0);
    }
    __syncthreads();
    for (int t = 0; t < n_stages; ++t) {
        if (t + 1 < n_stages) read(t + 1);
        const bf16* const as = stages + t % 2 * S::STAGE;
        multiply_stage<S>(acc, as, as + S::A_SIZE, warp_m, warp_n);
        if (t + 1 < n_stages) store(t + 1);
        __syncthreads();
    }
    store_tile<S>(out, bias, p, acc, col0, warp_m, warp_n, [&](int row) {
        return row0 + row < p.m ? int64_t(row0) + row : int64_t(-1);
    });
}

template <bool TA, bool TB, bool GATED>
using Small = TileShape<MATMUL_SMALL, MATMUL_SMALL, 2, 2, TA, TB, GATED>;

__device__ __forceinline__ Operand factor_a(const void* a, const MatmulParams& p) {
    return {a, p.a_type, (p.flags & MATMUL_A_VECTORS) != 0};
}

__device__ __forceinline__ Operand factor_b(const void* b, const MatmulParams& p) {
    return {b, p.b_type, (p.flags & MATMUL_B_VECTORS) != 0};
}

}  // namespace

// Four forms.
#define MATMUL_ANY_INSTANCE(name, TA, TB)                                                          \
    extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)                                \
        name(void* out, const void* a, const void* b, const void* bias, MatmulParams p) {          \
        any_product<Small<TA, TB, false>>(out, factor_a(a, p), factor_b(b, p), {}, bias, p);       \
    }                                                                                              \
    PUNA_KERNEL(name)

MATMUL_ANY_INSTANCE(matmul_nn_any, false, false)
MATMUL_ANY_INSTANCE(matmul_nt_any, false, true)
MATMUL_ANY_INSTANCE(matmul_tn_any, true, false)
MATMUL_ANY_INSTANCE(matmul_tt_any, true, true)

extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul_gated_any(void* out, const void* x, const void* w1, const void* w3, MatmulParams p) {
    any_product<Small<false, true, true>>(out, factor_a(x, p), factor_b(w1, p), factor_b(w3, p),
                                          nullptr, p);
}

PUNA_KERNEL(matmul_gated_any)
