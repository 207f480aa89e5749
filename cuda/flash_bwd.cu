// Causal attention inside packed sequences, backward, bf16 rows on tensor cores. Notation and
// layouts of flash_fwd.cu; probabilities are computed again from q, k and lse:
//   p[i, j]  = exp(s[i, j] - lse[i])
//   d[i]     = dout[i] . out[i]
//   ds[i, j] = p[i, j] (dout[i] . v[j] - d[i])
//   dq[i]    = scale sum over j of ds[i, j] k[j]
//   dk[j]    = scale sum over i, and over the heads of a group, of ds[i, j] q[i]
//   dv[j]    = sum over i, and over the heads of a group, of p[i, j] dout[i]
//
// dq: [t, n_heads, head_dim] f32; dk, dv: [t, n_kv_heads, head_dim] f32; d: [n_heads, t] f32. Sums
// are f32; p and ds are rounded to bf16 where they meet a third factor. Overwrites.
//
// No two blocks add to the same number: flash_bwd_dq has queries and goes over their keys,
// flash_bwd_dkdv has keys and goes over the heads of the group and, for each, the queries that see
// the keys. That computes scores twice (7 products where 5 would do) and sums in one fixed order.
//
// Source: Dao 2023 (arXiv 2307.08691), algorithm 2.

#include "include/flash.cuh"
#include "include/reduce.cuh"

namespace {

constexpr int STEP = FLASH_BWD_STEP;
constexpr int WARPS = FLASH_THREADS / WARP;
// Fragments of 8 columns of a step.
constexpr int NT = STEP / 8;

// Rows of steps in shared memory: `copy(i, slot)` begins to copy step i, `compute(i, slot)` uses it.
template <int STAGES, class Copy, class Compute>
__device__ __forceinline__ void run_steps(int steps, Copy copy, Compute compute) {
    static_assert(STAGES == 1 || STAGES == 2, "one or two steps in shared memory");
    if constexpr (STAGES == 2) {
        if (steps > 0) copy(0, 0);
        cp_async_commit();
    }
    for (int i = 0; i < steps; ++i) {
        const int ahead = i + STAGES - 1;
        if (ahead < steps) copy(ahead, ahead % STAGES);
        cp_async_commit();
        cp_async_wait<STAGES - 1>();
        __syncthreads();
        compute(i, i % STAGES);
        // All have left the slot that the next copies go to.
        __syncthreads();
    }
}

// HD: width of a tile's rows. ANY: heads of any width.
template <int HD, int STAGES, bool ANY>
__device__ __forceinline__ void flash_bwd_dq(float* dq, const bf16* dout, const bf16* q,
                                             const bf16* k, const bf16* v, const float* lse,
                                             const float* d, const FlashTile* tiles,
                                             const FlashParams& p) {
    constexpr int ROWS = FLASH_DQ_ROWS;
    static_assert(ROWS == WARPS * 16, "16 queries a warp");
    DYN_SMEM(smem);
    bf16* const qs = reinterpret_cast<bf16*>(smem);  // [ROWS, HD]
    bf16* const douts = qs + ROWS * HD;              // [ROWS, HD]
    bf16* const ring = douts + ROWS * HD;            // [STAGES, 2, STEP, HD]: keys, values

    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);
    const FlashTile tile = tiles[blockIdx.y];
    const int first = int(tile.first), end = min(int(tile.len), first + ROWS);
    const HeadRows<const bf16> q_rows(q, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const bf16> dout_rows(dout, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const bf16> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const bf16> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;

    const int warp_row = warp_id() * 16;
    const int warp_first = first + warp_row, warp_last = warp_first + 15;
    const int warp_first_key = first_key(warp_first, p.window);
    // Of this lane's two queries.
    float lse2[2], dd[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int pos = warp_first + acc_row(2 * half);
        const size_t at = size_t(head) * p.t + tile.start + pos;
        lse2[half] = pos < end ? lse[at] * LOG2_E : 0.f;
        dd[half] = pos < end ? d[at] : 0.f;
    }

    float sum[1][HD / 8][4];
    clear(sum[0]);
    const int begin = first_key(first, p.window) / STEP * STEP;
    copy_head<ROWS, HD, ANY>(qs, q_rows, first, end);
    copy_head<ROWS, HD, ANY>(douts, dout_rows, first, end);
    run_steps<STAGES>(
        (end - begin + STEP - 1) / STEP,
        [&](int i, int slot) {
            bf16* const ks = ring + slot * 2 * STEP * HD;
            copy_head<STEP, HD, ANY>(ks, k_rows, begin + i * STEP, end);
            copy_head<STEP, HD, ANY>(ks + STEP * HD, v_rows, begin + i * STEP, end);
        },
        [&](int i, int slot) {
            const int key = begin + i * STEP;
            if (key > warp_last || key + STEP <= warp_first_key) return;
            const bf16* const ks = ring + slot * 2 * STEP * HD;
            float s[1][NT][4], ds[1][NT][4];
            dots<HD, 1, NT>(s, qs, warp_row, ks, 0);
            dots<HD, 1, NT>(ds, douts, warp_row, ks + STEP * HD, 0);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int query = warp_first + acc_row(j), at = key + n * 8 + acc_col(j);
                    const float prob =
                        sees(query, at, p.window) ? ex2(fmaf(s[0][n][j], c, -lse2[j / 2])) : 0.f;
                    ds[0][n][j] = prob * (ds[0][n][j] - dd[j / 2]);
                }
            }
            add_product<HD>(sum, ds, ks, 0);
        });

    const HeadRows<float> dq_rows(dq, tile, p.n_heads, head, p.head_dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int pos = warp_first + acc_row(2 * half);
        if (pos >= end) continue;
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
            put_pair(dq_rows, pos, n * 8 + acc_col(0), sum[0][n][2 * half] * p.scale,
                     sum[0][n][2 * half + 1] * p.scale, p.flags);
        }
    }
}

// HD: width of a tile's rows. COLS: columns of dk and dv that the block sums, the blockIdx.z'th
// part. MT: fragments of 16 keys of a warp. Scores lie transposed: rows are keys, so that they are
// the first factor of both sums as they come out of the registers.
template <int HD, int COLS, int MT, int STAGES, bool ANY>
__device__ __forceinline__ void flash_bwd_dkdv(float* dk, float* dv, const bf16* dout,
                                               const bf16* q, const bf16* k, const bf16* v,
                                               const float* lse, const float* d,
                                               const FlashTile* tiles, const FlashParams& p) {
    constexpr int ROWS = WARPS * MT * 16;
    DYN_SMEM(smem);
    bf16* const ks = reinterpret_cast<bf16*>(smem);  // [ROWS, HD]
    bf16* const vs = ks + ROWS * HD;                 // [ROWS, HD]
    bf16* const ring = vs + ROWS * HD;               // [STAGES, 2, STEP, HD]: queries, dout
    float* const stats = reinterpret_cast<float*>(ring + STAGES * 2 * STEP * HD);
    // [STAGES, 2, STEP]: lse, d

    const uint32_t kv_head = blockIdx.x, group = p.n_heads / p.n_kv_heads;
    const int col0 = int(blockIdx.z) * COLS;
    const FlashTile tile = tiles[blockIdx.y];
    const int len = int(tile.len), first = int(tile.first), end = min(len, first + ROWS);
    const HeadRows<const bf16> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const bf16> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;

    const int warp_row = warp_id() * MT * 16;
    const int warp_first = first + warp_row, warp_last = warp_first + MT * 16 - 1;
    // Queries from `begin` on see the block's keys; those from `queries_end` on do not.
    const int begin = first / STEP * STEP;
    const int queries_end = uint32_t(len - (end - 1)) > p.window ? end - 1 + int(p.window) : len;
    const int per_head = (queries_end - begin + STEP - 1) / STEP;

    float dk_sum[MT][COLS / 8][4], dv_sum[MT][COLS / 8][4];
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) clear(dk_sum[mt]), clear(dv_sum[mt]);
    copy_head<ROWS, HD, ANY>(ks, k_rows, first, end);
    copy_head<ROWS, HD, ANY>(vs, v_rows, first, end);
    run_steps<STAGES>(
        int(group) * per_head,
        [&](int i, int slot) {
            const uint32_t head = kv_head * group + i / per_head;
            const int query = begin + i % per_head * STEP;
            const HeadRows<const bf16> q_rows(q, tile, p.n_heads, head, p.head_dim);
            const HeadRows<const bf16> dout_rows(dout, tile, p.n_heads, head, p.head_dim);
            bf16* const qs = ring + slot * 2 * STEP * HD;
            copy_head<STEP, HD, ANY>(qs, q_rows, query, queries_end);
            copy_head<STEP, HD, ANY>(qs + STEP * HD, dout_rows, query, queries_end);
            const int thread = int(threadIdx.x);
            if (thread < 2 * STEP) {
                const int pos = query + thread % STEP;
                const float* const from = thread < STEP ? lse : d;
                const bool valid = pos < queries_end;
                const size_t at = size_t(head) * p.t + tile.start + (valid ? pos : begin);
                cp_async4_zfill(stats + slot * 2 * STEP + thread, from + at, valid);
            }
        },
        [&](int i, int slot) {
            const int query = begin + i % per_head * STEP;
            const bool seen = query + STEP > warp_first &&
                              (query <= warp_last || uint32_t(query - warp_last) < p.window);
            if (!seen) return;
            const bf16* const qs = ring + slot * 2 * STEP * HD;
            const bf16* const douts = qs + STEP * HD;
            const float* const lses = stats + slot * 2 * STEP;
            float s[MT][NT][4], ds[MT][NT][4];
            dots<HD, MT, NT>(s, ks, warp_row, qs, 0);
            dots<HD, MT, NT>(ds, vs, warp_row, douts, 0);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int col = n * 8 + acc_col(side), at = query + col;
                    const float lse2 = lses[col] * LOG2_E, dd = lses[STEP + col];
#pragma unroll
                    for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
                        for (int j = side; j < 4; j += 2) {
                            const int key = warp_first + mt * 16 + acc_row(j);
                            const bool visible = at < queries_end && sees(at, key, p.window);
                            s[mt][n][j] = visible ? ex2(fmaf(s[mt][n][j], c, -lse2)) : 0.f;
                            ds[mt][n][j] = s[mt][n][j] * (ds[mt][n][j] - dd);
                        }
                    }
                }
            }
            add_product<HD>(dv_sum, s, douts, col0);
            add_product<HD>(dk_sum, ds, qs, col0);
        });

    const HeadRows<float> dk_rows(dk, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<float> dv_rows(dv, tile, p.n_kv_heads, kv_head, p.head_dim);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int pos = warp_first + mt * 16 + acc_row(2 * half);
            if (pos >= end) continue;
#pragma unroll
            for (int n = 0; n < COLS / 8; ++n) {
                const int col = col0 + n * 8 + acc_col(0), j = 2 * half;
                put_pair(dk_rows, pos, col, dk_sum[mt][n][j] * p.scale,
                         dk_sum[mt][n][j + 1] * p.scale, p.flags);
                put_pair(dv_rows, pos, col, dv_sum[mt][n][j], dv_sum[mt][n][j + 1], p.flags);
            }
        }
    }
}

// d[h, i] = dout[i, h] . out[i, h]. Where dout is f32 and rows are bf16 it is rounded into `rounded`
// [t, n_heads, head_dim] on the way, and d is the product with what the other kernels read.
template <class G, class T>
__device__ __forceinline__ void flash_bwd_prepare(float* d, bf16* rounded, const G* dout,
                                                  const T* out, const FlashPrepareParams& p) {
    constexpr int N = 4;
    const size_t at = size_t(blockIdx.x) * (FLASH_PREPARE_THREADS / WARP) + warp_id();
    if (at >= p.rows * p.n_heads) return;
    const size_t start = at * p.head_dim;
    const bool packs = p.packs != 0;
    float sum = 0.f;
    for (uint32_t col = lane_id() * N; col < p.head_dim; col += WARP * N) {
        const size_t i = start + col;
        const int count = packs ? N : min(N, int(p.head_dim - col));
        Pack<G, N> g;
        Pack<T, N> o;
        if (packs) {
            g = Pack<G, N>::load(dout + i);
            o = Pack<T, N>::load(out + i);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                g.v[j] = j < count ? dout[i + j] : from_f32<G>(0.f);
                o.v[j] = j < count ? out[i + j] : from_f32<T>(0.f);
            }
        }
        Pack<bf16, N> low;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float x = to_f32(g.v[j]);
            if constexpr (sizeof(G) != sizeof(T)) {
                low.v[j] = from_f32<bf16>(x);
                x = to_f32(low.v[j]);
            }
            sum = fmaf(x, to_f32(o.v[j]), sum);
        }
        if constexpr (sizeof(G) != sizeof(T)) {
            if (packs) {
                low.store(rounded + i);
            } else {
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    if (j < count) rounded[i + j] = low.v[j];
                }
            }
        }
    }
    sum = warp_sum(sum);
    const size_t row = at / p.n_heads, head = at % p.n_heads;
    if (lane_id() == 0) d[head * p.rows + row] = sum;
}

}  // namespace

#define FLASH_BWD(suffix, hd, stages, rows, any)                                                  \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                   \
        flash_bwd_dq_bf16_##suffix(float* dq, const bf16* dout, const bf16* q, const bf16* k,     \
                                   const bf16* v, const float* lse, const float* d,               \
                                   const FlashTile* tiles, FlashParams p) {                       \
        flash_bwd_dq<hd, stages, any>(dq, dout, q, k, v, lse, d, tiles, p);                       \
    }                                                                                             \
    PUNA_KERNEL(flash_bwd_dq_bf16_##suffix)                                                       \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                   \
        flash_bwd_dkdv_bf16_##suffix(float* dk, float* dv, const bf16* dout, const bf16* q,       \
                                     const bf16* k, const bf16* v, const float* lse,              \
                                     const float* d, const FlashTile* tiles, FlashParams p) {     \
        constexpr int COLS = hd < FLASH_DKDV_COLS ? hd : FLASH_DKDV_COLS;                         \
        flash_bwd_dkdv<hd, COLS, rows / (16 * WARPS), stages, any>(dk, dv, dout, q, k, v, lse, d, \
                                                                   tiles, p);                     \
    }                                                                                             \
    PUNA_KERNEL(flash_bwd_dkdv_bf16_##suffix)

FLASH_BWD(64, 64, FLASH_BWD_STAGES, FLASH_DKDV_ROWS_64, false)
FLASH_BWD(80, 80, FLASH_BWD_STAGES, FLASH_DKDV_ROWS, false)
FLASH_BWD(96, 96, FLASH_BWD_STAGES, FLASH_DKDV_ROWS, false)
FLASH_BWD(128, 128, FLASH_BWD_STAGES, FLASH_DKDV_ROWS, false)
FLASH_BWD(256, 256, FLASH_BWD_STAGES_256, FLASH_DKDV_ROWS, false)

// Widths that are no multiple of 8.
FLASH_BWD(any_64, 64, FLASH_BWD_STAGES_256, FLASH_DKDV_ROWS, true)
FLASH_BWD(any_128, 128, FLASH_BWD_STAGES_256, FLASH_DKDV_ROWS, true)
FLASH_BWD(any_256, 256, FLASH_BWD_STAGES_256, FLASH_DKDV_ROWS, true)

#define FLASH_BWD_PREPARE(name, dout_type, out_type)                                              \
    extern "C" __global__ void __launch_bounds__(FLASH_PREPARE_THREADS)                           \
        name(float* d, bf16* rounded, const dout_type* dout, const out_type* out,                 \
             FlashPrepareParams p) {                                                              \
        flash_bwd_prepare(d, rounded, dout, out, p);                                              \
    }                                                                                             \
    PUNA_KERNEL(name)

FLASH_BWD_PREPARE(flash_bwd_prepare_f32, float, float)
FLASH_BWD_PREPARE(flash_bwd_prepare_bf16, bf16, bf16)
FLASH_BWD_PREPARE(flash_bwd_prepare_f32_bf16, float, bf16)
