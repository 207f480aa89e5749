// Tiled products with quantised weights on tensor cores: what the quant_tile_*.cu share.
//
// As matmul_tile.cuh, whose ring, fragments, order of sums and epilogue they use: x comes by cp.async
// three stages ahead. A stage of 32 inputs of W is read as it is stored one stage ahead into
// registers (5 bits a weight, so 16 to 40 bytes a thread), decoded and rounded to bf16 on its way to
// the tile of the stage to come, while the tensor cores are busy with the one before. So the bits are
// those of the product with the decoded matrix rounded to bf16.
#pragma once

#include "matmul_tile.cuh"
#include "quant.cuh"

// A thread's part of the tile of W: WORDS words of one chunk.
template <class S, class F> struct QuantAhead {
    static constexpr int WORDS = S::BN * 4 / S::THREADS, PER_CHUNK = 4 / WORDS;
    static_assert(S::BK == QUANT_CHUNK && WORDS * PER_CHUNK == 4, "a stage is a chunk");
    // Parts of a stored row of the tile: of one chunk for x W^T, of BN columns for dy W.
    static constexpr int PER_ROW = (S::TB ? 1 : S::BN / QUANT_CHUNK) * PER_CHUNK;

    RawCodes<F, WORDS> codes;
    RawScales scales;

    static __device__ __forceinline__ int row() { return int(threadIdx.x) / PER_ROW; }
    static __device__ __forceinline__ int part() { return int(threadIdx.x) % PER_ROW; }
    static __device__ __forceinline__ int first() { return part() % PER_CHUNK * WORDS; }

    // Stage t. What lies outside of the matrix is zero, in code and scale: so finite, and either no
    // column of the output or the partner of a zero of the other factor.
    __device__ __forceinline__ void read(const QuantView& w, const QuantParams& p, int col0, int t) {
        const int64_t at = S::TB ? col0 + row() : t * S::BK + row();
        const int chunk = S::TB ? t : col0 / QUANT_CHUNK + part() / PER_CHUNK;
        if (at < p.rows && chunk * QUANT_CHUNK < p.cols) {
            codes = load_codes<F, WORDS>(w, p, at, chunk, first());
            scales = load_scales<F>(w, p, at, chunk);
        } else {
            codes = {}, scales = {};
        }
    }

    __device__ __forceinline__ void store(bf16* tile, float offset, int col0, int t,
                                          const float* tables) const {
        const int chunk = S::TB ? t : col0 / QUANT_CHUNK + part() / PER_CHUNK;
        const Scales s = decode_scales<F>(scales, offset, tables);
        uint32_t pairs[4][WORDS];
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            float v[8];
            decode_word<F>(v, codes.low + i * F::LOW_WORDS, codes.high[F::HIGH > 0 ? i : 0], chunk,
                           first() + i, s, tables);
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                pairs[pair][i] = pack_bf16(v[2 * pair], v[2 * pair + 1]);
            }
        }
        const int col = S::TB ? 0 : part() / PER_CHUNK * QUANT_CHUNK;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            Pack<uint32_t, WORDS> pack;
#pragma unroll
            for (int i = 0; i < WORDS; ++i) pack.v[i] = pairs[pair][i];
            bf16* const to = tile + swizzled<S::B_COLS>(row(), col + 8 * pair) + 2 * first();
            pack.store(reinterpret_cast<uint32_t*>(to));
        }
    }
};

// out = alpha (a W' + a2 b2) + bias (+ out): W' is W^T [k, rows] where S::TB, else W [rows, cols];
// a2 [m, k2] and b2, stored as bf16 the way W is ([n, k2], or [k2, n]), where k2 > 0.
template <class S, class F>
__device__ __forceinline__ void quant_product(void* out, const bf16* a, const QuantView& w,
                                              const bf16* a2, const bf16* b2, const void* bias,
                                              const QuantParams& params) {
    DYN_SMEM(smem);
    bf16* const ring = reinterpret_cast<bf16*>(smem);
    float* const tables = reinterpret_cast<float*>(ring + MATMUL_STAGES * S::STAGE);
    const MatmulParams& p = params.product;
    const int warp_m = warp_id() / S::WARPS_N, warp_n = warp_id() % S::WARPS_N;
    const TileAt at = tile_at(blockIdx.x, tiles_of(p.m, S::BM), tiles_of(p.n, S::BN));
    const int row0 = at.row * S::BM, col0 = at.col * S::BN;
    const int first_stages = tiles_of(p.k, S::BK);
    const int stages = first_stages + tiles_of(p.k2, S::BK);

    FactorCopy<false, S::BM, S::THREADS> copy_a;
    FactorCopy<!S::TB, S::BN, S::THREADS> copy_b;
    copy_a.begin(a, row0, p.m, p.k);
    auto copy_stage = [&](int t) {
        bf16* const as = ring + t % MATMUL_STAGES * S::STAGE;
        if (t == first_stages) {
            copy_a.begin(a2, row0, p.m, p.k2);
            copy_b.begin(b2, col0, p.n, p.k2);
        }
        copy_a.copy(as);
        if (t >= first_stages) copy_b.copy(as + S::A_SIZE);
    };
    QuantAhead<S, F> ahead;
    auto store_stage = [&](int t) {
        ahead.store(ring + t % MATMUL_STAGES * S::STAGE + S::A_SIZE, w.offset, col0, t, tables);
    };

    Acc acc[S::MI][S::NI];
    clear(acc);
#pragma unroll
    for (int t = 0; t < MATMUL_STAGES - 1; ++t) {
        if (t < stages) copy_stage(t);
        cp_async_commit();
    }
    if (first_stages > 0) ahead.read(w, params, col0, 0);
    if constexpr (F::TABLE > 0) {
        fill_tables<F::TABLE>(tables);
        __syncthreads();
    }
    if (first_stages > 0) store_stage(0);
    if (first_stages > 1) ahead.read(w, params, col0, 1);
    for (int t = 0; t < stages; ++t) {
        // Landed and stored for all threads after the barrier; and all have left the stage before,
        // whose place the next copies take.
        cp_async_wait<MATMUL_STAGES - 2>();
        __syncthreads();
        if (t + MATMUL_STAGES - 1 < stages) copy_stage(t + MATMUL_STAGES - 1);
        cp_async_commit();
        if (t + 1 < first_stages) store_stage(t + 1);
        if (t + 2 < first_stages) ahead.read(w, params, col0, t + 2);
        const bf16* const as = ring + t % MATMUL_STAGES * S::STAGE;
        multiply_stage<S>(acc, as, as + S::A_SIZE, warp_m, warp_n);
    }
    store_tile<S>(out, bias, p, acc, col0, warp_m, warp_n, [&](int row) {
        return row0 + row < p.m ? int64_t(row0) + row : int64_t(-1);
    });
}

// The kernels of a format: x W^T and dy W, in the small tile; of the formats that most models have
// in the large one too.
#define QUANT_TILE_INSTANCE(name, FORMAT, TILE, TB)                                                \
    extern "C" __global__ void __launch_bounds__(MATMUL_THREADS, 2)                                \
        name(void* out, const bf16* a, const uint8_t* codes, const uint8_t* high,                  \
             const uint8_t* scales, const uint8_t* supers, const bf16* a2, const bf16* b2,         \
             const void* bias, QuantParams p) {                                                    \
        const QuantView w = {codes, high, scales, supers, p.offset};                               \
        quant_product<TileShape<TILE, TILE, 2, 2, false, TB>, Quant<FORMAT>>(out, a, w, a2, b2,    \
                                                                             bias, p);             \
    }                                                                                              \
    PUNA_KERNEL(name)
#define QUANT_SMALL_TILES(name, FORMAT)                                                            \
    QUANT_TILE_INSTANCE(quant_nt_##name##_small, FORMAT, MATMUL_SMALL, true)                       \
    QUANT_TILE_INSTANCE(quant_nn_##name##_small, FORMAT, MATMUL_SMALL, false)
#define QUANT_TILES(name, FORMAT)                                                                  \
    QUANT_SMALL_TILES(name, FORMAT)                                                                \
    QUANT_TILE_INSTANCE(quant_nt_##name##_large, FORMAT, MATMUL_LARGE, true)                       \
    QUANT_TILE_INSTANCE(quant_nn_##name##_large, FORMAT, MATMUL_LARGE, false)
