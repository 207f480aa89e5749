// out = alpha a b + bias, or out += alpha a b + bias, by the products of warp groups, the factors
// brought by bulk copies: for the large products of prompts and of training.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k] and b [k, n] as stored (n) or as the transpose
// of what is stored (t), bf16, given as maps of what is stored: boxes of 64 columns by the rows that
// `Side` says. bias [n], f32 or bf16, or none; k at least 1. Sums: include/matmul_group.cuh.
// Overwrites, or adds with MATMUL_ACC.
//
// The grid is as large as the device; a block takes tiles at that distance, in the order of
// `tile_at`, so that what runs at one time shares rows and columns in the second-level cache.
//
//   one thread       copies stage after stage, through the ends of tiles, as places become `empty`
//   two warp groups  64 x 256 outputs each: wait for a stage (`full`), multiply, free it, store;
//                    the next tile's first stages land meanwhile
//
// The tensor cores take factors either way round, so the four forms differ in descriptors alone.
#include "include/matmul_group.cuh"

namespace {

// A factor's part of a stage: LANES rows of a, or columns of b. ALONG: inputs run along the stored
// rows, and one box of LANES rows has them; else boxes of BK rows have 64 lanes each.
template <int LANES, bool ALONG> struct Side {
    static __device__ __forceinline__ void copy(bf16* to, const TensorMap& map, int lane, int input,
                                                uint64_t* full) {
        if constexpr (ALONG) {
            copy_box(to, map, lane, input, full);
        } else {
#pragma unroll
            for (int i = 0; i < LANES / BOX_COLS; ++i) {
                copy_box(to + i * square_size(BK), map, input, lane + i * BOX_COLS, full);
            }
        }
    }
};

template <bool TA, bool TB>
__device__ __forceinline__ void tma_product(void* out, const TensorMap& a, const TensorMap& b,
                                            const void* bias, const MatmulParams& p) {
    DYN_SMEM(smem);
    __shared__ Barriers barriers;
    bf16* const ring = first_square(smem);
    const int tiles_m = tiles_of(p.m, BM), tiles_n = tiles_of(p.n, BN), stages = tiles_of(p.k, BK);
    const int64_t tiles = int64_t(tiles_m) * tiles_n;
    if (threadIdx.x == 0) {
        prefetch_map(a);
        prefetch_map(b);
        barriers.init(1, READERS);
    }
    __syncthreads();
    Ring at;
    if (threadIdx.x < GROUP) {
        registers_down_to<FEW_REGISTERS>();
        if (threadIdx.x > 0) return;
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const TileAt place = tile_at(unsigned(tile), tiles_m, tiles_n);
            for (int t = 0; t < stages; ++t) {
                uint64_t* const full = &barriers.full[at.slot];
                bf16* const as = ring + at.slot * STAGE_SIZE;
                mbarrier_wait(&barriers.empty[at.slot], at.round ^ 1);
                mbarrier_arrive_expect(full, STAGE_SIZE * 2);
                Side<BM, !TA>::copy(as, a, place.row * BM, t * BK, full);
                Side<BN, TB>::copy(as + A_SIZE, b, place.col * BN, t * BK, full);
                at.next();
            }
        }
        return;
    }
    registers_up_to<MANY_REGISTERS>();
    const int group = int(threadIdx.x) / GROUP - 1;
    float acc[SUMS];
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileAt place = tile_at(unsigned(tile), tiles_m, tiles_n);
        multiply_stages<TA, TB>(acc, ring, barriers, at, group, stages);
        store_group(out, bias, p, acc, group, place.row * BM, place.col * BN);
    }
}

}  // namespace

#define MATMUL_TMA(name, TA, TB)                                                                   \
    extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, 1)                                 \
        name(void* out, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,  \
             const void* bias, MatmulParams p) {                                                   \
        tma_product<TA, TB>(out, a, b, bias, p);                                                   \
    }                                                                                              \
    PUNA_KERNEL(name)

MATMUL_TMA(matmul_nn_bf16_tma, false, false)
MATMUL_TMA(matmul_nt_bf16_tma, false, true)
MATMUL_TMA(matmul_tn_bf16_tma, true, false)
MATMUL_TMA(matmul_tt_bf16_tma, true, true)
