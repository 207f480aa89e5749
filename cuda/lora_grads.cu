// Gradients of a low-rank adapter (Hu et al. 2021, arXiv 2106.09685), both in one launch and one
// that adds parts up: da += du^T x, db += s dy^T u.
//
//   lora_grads_r*     part[i][column][j] = sum over rows of part i of wide[row][column] inner[row][j],
//                     wide and inner being x and du, or dy and u
//   lora_grads_sum    da[j][column] += the sum of the parts, in order; db[column][j] += s of it
//
// Thousands of rows meet few columns, so rows are cut into parts for there to be enough blocks: into
// parts of LORA_GRADS_ROWS whatever the GPU is, which fixes the bits. f32 sums: a part's are the chains
// of include/matmul_tile.cuh.
#include "include/lora.h"
#include "include/lora_grads.h"
#include "include/matmul_tile.cuh"

namespace {

// Rows of a stage of f32 numbers [rows, r], read one stage ahead and rounded to bf16 on their way to
// the tile [BK, RANK].
template <int RANK> struct RowsAhead {
    static constexpr int PER_ROW = RANK / 4;
    static constexpr int N = MATMUL_BK * PER_ROW / LORA_GRADS_THREADS;
    static_assert(N * LORA_GRADS_THREADS == MATMUL_BK * PER_ROW, "each thread has as many");

    Pack<float, 4> v[N];

    __device__ __forceinline__ void read(const float* from, int r, int rows, int t) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int at = i * LORA_GRADS_THREADS + int(threadIdx.x);
            const int row = t * MATMUL_BK + at / PER_ROW, col = at % PER_ROW * 4;
            const bool inside = row < rows && col < r;
            v[i] = inside ? Pack<float, 4>::load(from + int64_t(row) * r + col) : Pack<float, 4>{};
        }
    }
    __device__ __forceinline__ void store(bf16* tile) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int at = i * LORA_GRADS_THREADS + int(threadIdx.x);
            const Pack<uint32_t, 2> pairs = {pack_bf16(v[i].v[0], v[i].v[1]),
                                             pack_bf16(v[i].v[2], v[i].v[3])};
            bf16* const to = tile + swizzled<RANK>(at / PER_ROW, at % PER_ROW * 4);
            pairs.store(reinterpret_cast<uint32_t*>(to));
        }
    }
};

// parts: [parts, k, r] for da, then [parts, n, r] for db, f32; x [m, k], dy [m, n], bf16; du, u
// [m, r], f32 or bf16. All 16-byte aligned; k, n and r multiples of 8. Overwrites.
template <int RANK>
__device__ __forceinline__ void lora_grads(float* parts, const bf16* x, const void* du,
                                           const bf16* dy, const void* u,
                                           const LoraGradsParams& p) {
    using S = TileShape<LORA_GRADS_TILE, RANK, 4, 1, true, false>;
    static_assert(S::THREADS == LORA_GRADS_THREADS, "as the launcher has it");
    DYN_SMEM(smem);
    bf16* const ring = reinterpret_cast<bf16*>(smem);
    const int tiles_a = tiles_of(p.k, S::BM), tiles = tiles_a + tiles_of(p.n, S::BM);
    const int part = int(blockIdx.x) / tiles, tile = int(blockIdx.x) % tiles;
    const bool is_a = tile < tiles_a;
    const int cols = is_a ? p.k : p.n, col0 = (is_a ? tile : tile - tiles_a) * S::BM;
    const int64_t row0 = int64_t(part) * LORA_GRADS_ROWS;
    const int rows = min(p.m - int(row0), LORA_GRADS_ROWS);
    const bf16* const wide = (is_a ? x : dy) + row0 * cols;
    const void* const inner = is_a ? du : u;
    const bool is_f32 = (is_a ? p.du_type : p.u_type) == MATMUL_F32;
    const float* const inner_f32 = static_cast<const float*>(inner) + row0 * p.r;
    const int stages = tiles_of(rows, S::BK);

    FactorCopy<true, S::BM, S::THREADS> copy_wide;
    FactorCopy<true, RANK, S::THREADS> copy_inner;
    copy_wide.begin(wide, col0, cols, rows);
    copy_inner.begin(static_cast<const bf16*>(inner) + row0 * p.r, 0, p.r, rows);
    auto stage_at = [&](int t) { return ring + t % MATMUL_STAGES * S::STAGE; };
    auto copy_stage = [&](int t) {
        copy_wide.copy(stage_at(t));
        if (!is_f32) copy_inner.copy(stage_at(t) + S::A_SIZE);
    };
    RowsAhead<RANK> ahead;
    Acc acc[S::MI][S::NI];
    clear(acc);
#pragma unroll
    for (int t = 0; t < MATMUL_STAGES - 1; ++t) {
        if (t < stages) copy_stage(t);
        cp_async_commit();
    }
    if (is_f32) {
        ahead.read(inner_f32, p.r, rows, 0);
        ahead.store(stage_at(0) + S::A_SIZE);
        ahead.read(inner_f32, p.r, rows, 1);
    }
    for (int t = 0; t < stages; ++t) {
        // As in tile_product.
        cp_async_wait<MATMUL_STAGES - 2>();
        __syncthreads();
        if (t + MATMUL_STAGES - 1 < stages) copy_stage(t + MATMUL_STAGES - 1);
        cp_async_commit();
        if (is_f32 && t + 1 < stages) {
            ahead.store(stage_at(t + 1) + S::A_SIZE);
            ahead.read(inner_f32, p.r, rows, t + 2);
        }
        multiply_stage<S>(acc, stage_at(t), stage_at(t) + S::A_SIZE, warp_id(), 0);
    }
    const int64_t before = is_a ? 0 : int64_t(tiles_of(p.m, LORA_GRADS_ROWS)) * p.k * p.r;
    float* const out = parts + before + int64_t(part) * cols * p.r;
#pragma unroll
    for (int mi = 0; mi < S::MI; ++mi) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int col = col0 + (warp_id() * S::MI + mi) * 16 + acc_row(2 * half);
            if (col >= cols) continue;
#pragma unroll
            for (int ni = 0; ni < S::NI; ++ni) {
                const int j = ni * 8 + acc_col(0);
                if (j >= p.r) continue;
                const Pack<float, 2> pair = {acc[mi][ni][2 * half], acc[mi][ni][2 * half + 1]};
                pair.store(out + int64_t(col) * p.r + j);
            }
        }
    }
}

}  // namespace

#define LORA_GRADS(name, RANK)                                                                     \
    extern "C" __global__ void __launch_bounds__(LORA_GRADS_THREADS)                               \
        name(float* parts, const bf16* x, const void* du, const bf16* dy, const void* u,           \
             LoraGradsParams p) {                                                                  \
        lora_grads<RANK>(parts, x, du, dy, u, p);                                                  \
    }                                                                                              \
    PUNA_KERNEL(name)

LORA_GRADS(lora_grads_r16, LORA_RANK_16)
LORA_GRADS(lora_grads_r64, LORA_RANK_64)

// da [r, k] and db [n, r], f32, are added to; a thread has an element of one of them.
extern "C" __global__ void __launch_bounds__(LORA_GRADS_SUM_THREADS)
    lora_grads_sum(float* da, float* db, const float* parts, LoraGradsParams p) {
    const int64_t of_a = int64_t(p.k) * p.r, of_b = int64_t(p.n) * p.r;
    const int n_parts = tiles_of(p.m, LORA_GRADS_ROWS);
    const int64_t i = int64_t(blockIdx.x) * LORA_GRADS_SUM_THREADS + threadIdx.x;
    if (i >= of_a + of_b) return;
    const bool is_a = i < of_a;
    // Neighbouring threads have neighbours of what is written.
    const int64_t at = is_a ? i % p.k * p.r + i / p.k : i - of_a, step = is_a ? of_a : of_b;
    const float* const from = parts + (is_a ? 0 : n_parts * of_a) + at;
    float sum = 0.f;
    for (int part = 0; part < n_parts; ++part) sum += from[part * step];
    float* const to = is_a ? da + i : db + at;
    *to = *to + (is_a ? sum : p.scale * sum);
}

PUNA_KERNEL(lora_grads_sum)
