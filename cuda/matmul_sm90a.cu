// out = alpha a b^T + bias, or out += alpha a b^T + bias, by the warp-group products of compute
// capability 9.0: the form that prompts and training use most. **Has never run**: it is compiled,
// and not chosen by any launcher.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k] and b [n, k], bf16, 16-byte aligned, k a
// multiple of 8; bias [n], f32 or bf16, or none. f32 sums, 16 inputs at a time in order, as in
// include/matmul_tile.cuh; whether the bits are those of mma.m16n8k16 is for a GPU to say.
//
//   one warp group   copies stage after stage by cp.async, and says when one has landed (`full`)
//   two warp groups  64 x 256 outputs each: wait for a stage, multiply, say it is free (`empty`)
#include "include/matmul_tile.cuh"
#include "include/ptx_sm90a.cuh"

namespace {

constexpr int BM = WGMMA_BM, BN = WGMMA_BN, BK = 64, STAGES = WGMMA_STAGES;
constexpr int GROUP = 128;
constexpr int A_SIZE = BM * BK, STAGE = (BM + BN) * BK;
// Stages that copies are under way for when the oldest is waited for.
constexpr int LAG = 2;
static_assert(LAG < STAGES, "a stage is waited for before its place is needed again");

struct Barriers {
    uint64_t full[STAGES], empty[STAGES];
};

__device__ __forceinline__ void produce(bf16* ring, Barriers& barriers, const bf16* a,
                                        const bf16* b, int row0, int col0, int stages,
                                        const MatmulParams& p) {
    FactorCopy<false, BM, GROUP, BK> copy_a;
    FactorCopy<false, BN, GROUP, BK> copy_b;
    copy_a.begin(a, row0, p.m, p.k);
    copy_b.begin(b, col0, p.n, p.k);
    for (int t = 0; t < stages + LAG; ++t) {
        if (t < stages) {
            const int slot = t % STAGES;
            if (t >= STAGES) mbarrier_wait(&barriers.empty[slot], (t / STAGES - 1) % 2);
            bf16* const as = ring + slot * STAGE;
            copy_a.copy(as);
            copy_b.copy(as + A_SIZE);
        }
        // Behind the last stage groups are empty: what is waited for stays LAG groups back.
        cp_async_commit();
        if (t >= LAG) {
            cp_async_wait<LAG>();
            fence_proxy_async();
            mbarrier_arrive(&barriers.full[(t - LAG) % STAGES]);
        }
    }
}

__device__ __forceinline__ void consume(float (&acc)[128], const bf16* ring, Barriers& barriers,
                                        int group, int stages) {
    for (int t = 0; t < stages; ++t) {
        const int slot = t % STAGES;
        mbarrier_wait(&barriers.full[slot], t / STAGES % 2);
        const bf16* const as = ring + slot * STAGE;
        const uint64_t a = wgmma_tile(as + group * 64 * BK), b = wgmma_tile(as + A_SIZE);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 16; ++k) {
            wgmma_m64n256k16(acc, a + 2 * k, b + 2 * k, t > 0 || k > 0);
        }
        wgmma_commit();
        // The stage before this one has been read.
        wgmma_wait<1>();
        if (t > 0 && lane_id() == 0) mbarrier_arrive(&barriers.empty[(t - 1) % STAGES]);
    }
    wgmma_wait<0>();
}

template <bool PLAIN, class O>
__device__ __forceinline__ void store(O* out, const void* bias, const MatmulParams& p,
                                      const float (&acc)[128], int row0, int col0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + acc_row(2 * half);
        if (row >= p.m) continue;
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            const int col = col0 + j * 8 + acc_col(0);
            const float v0 = acc[4 * j + 2 * half], v1 = acc[4 * j + 2 * half + 1];
            if constexpr (PLAIN) {
                put_plain_pair(out, p, size_t(row), col, v0, v1);
            } else {
                put_pair(out, bias, p, size_t(row), col, v0, v1);
            }
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, 1)
    matmul_nt_bf16_wgmma(void* out, const bf16* a, const bf16* b, const void* bias,
                         MatmulParams p) {
    DYN_SMEM(smem);
    __shared__ Barriers barriers;
    // Tiles begin at multiples of 1024 bytes, for which the launch has as many more.
    bf16* const ring = reinterpret_cast<bf16*>(smem + (1024 - smem_u32(smem) % 1024) % 1024);
    const TileAt at = tile_at(blockIdx.x, tiles_of(p.m, BM), tiles_of(p.n, BN));
    const int row0 = at.row * BM, col0 = at.col * BN, stages = tiles_of(p.k, BK);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&barriers.full[s], GROUP);
            mbarrier_init(&barriers.empty[s], 2 * GROUP / WARP);
        }
    }
    __syncthreads();
    // 128 x 40 + 256 x 232 registers: what 384 threads of 168 have.
    if (threadIdx.x < GROUP) {
        registers_down_to<40>();
        produce(ring, barriers, a, b, row0, col0, stages, p);
        return;
    }
    registers_up_to<232>();
    const int group = int(threadIdx.x) / GROUP - 1;
    float acc[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) acc[i] = 0.f;
    consume(acc, ring, barriers, group, stages);
    const int warp_row = row0 + group * 64 + warp_id() % 4 * 16;
    const bool plain = is_plain(bias, p);
    if (p.flags & MATMUL_OUT_BF16) {
        bf16* const to = static_cast<bf16*>(out);
        if (plain) {
            store<true>(to, bias, p, acc, warp_row, col0);
        } else {
            store<false>(to, bias, p, acc, warp_row, col0);
        }
    } else if (plain) {
        store<true>(static_cast<float*>(out), bias, p, acc, warp_row, col0);
    } else {
        store<false>(static_cast<float*>(out), bias, p, acc, warp_row, col0);
    }
}
