// out = alpha a b^T + bias, or out += alpha a b^T + bias, by the products of warp groups, the
// factors copied by cp.async: the step before matmul_tma_sm90a.cu, which shares all but the copies.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k] and b [n, k], bf16, 16-byte aligned, k a
// multiple of 8, at least 8; bias [n], f32 or bf16, or none. Sums: include/matmul_group.cuh.
//
//   one warp group   copies stage after stage by cp.async, and says when one has landed (`full`)
//   two warp groups  64 x 256 outputs each: wait for a stage, multiply, say it is free (`empty`)
#include "include/matmul_group.cuh"

namespace {

// Stages that copies are under way for when the oldest is waited for. A stage's place is free one
// stage after it was read, for which that next one must have landed.
constexpr int LAG = 2;
static_assert(LAG + 1 < STAGES, "nobody waits in a circle");

__device__ __forceinline__ void produce(bf16* ring, Barriers& barriers, const bf16* a,
                                        const bf16* b, int row0, int col0, int stages,
                                        const MatmulParams& p) {
    FactorCopy<false, BM, GROUP, BK> copy_a;
    FactorCopy<false, BN, GROUP, BK> copy_b;
    copy_a.begin(a, row0, p.m, p.k);
    copy_b.begin(b, col0, p.n, p.k);
    Ring at, landed;
    for (int t = 0; t < stages + LAG; ++t) {
        if (t < stages) {
            mbarrier_wait(&barriers.empty[at.slot], at.round ^ 1);
            bf16* const as = ring + at.slot * STAGE_SIZE;
            copy_a.copy(as);
            copy_b.copy(as + A_SIZE);
            at.next();
        }
        // Behind the last stage groups are empty: what is waited for stays LAG groups back.
        cp_async_commit();
        if (t >= LAG) {
            cp_async_wait<LAG>();
            fence_proxy_async();
            mbarrier_arrive(&barriers.full[landed.slot]);
            landed.next();
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, 1)
    matmul_nt_bf16_wgmma(void* out, const bf16* a, const bf16* b, const void* bias,
                         MatmulParams p) {
    DYN_SMEM(smem);
    __shared__ Barriers barriers;
    bf16* const ring = first_square(smem);
    const TileAt tile = tile_at(blockIdx.x, tiles_of(p.m, BM), tiles_of(p.n, BN));
    const int row0 = tile.row * BM, col0 = tile.col * BN, stages = tiles_of(p.k, BK);
    if (threadIdx.x == 0) barriers.init(GROUP, READERS);
    __syncthreads();
    if (threadIdx.x < GROUP) {
        registers_down_to<FEW_REGISTERS>();
        produce(ring, barriers, a, b, row0, col0, stages, p);
        return;
    }
    registers_up_to<MANY_REGISTERS>();
    const int group = int(threadIdx.x) / GROUP - 1;
    float acc[SUMS];
    Ring at;
    multiply_stages<false, true>(acc, ring, barriers, at, group, stages);
    store_group(out, bias, p, acc, group, row0, col0);
}

PUNA_KERNEL(matmul_nt_bf16_wgmma)
