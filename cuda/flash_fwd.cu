// Causal attention inside packed sequences, forward, bf16 rows on tensor cores:
//   s[i, j] = scale q[i, h] . k[j, h / group]     over the keys j of i's sequence with
//                                                 i - window < j <= i
//   lse[h, i] = ln(sum over j of exp(s[i, j]))
//   out[i, h] = sum over j of exp(s[i, j] - lse[h, i]) v[j, h / group]
//
// out, q: [t, n_heads, head_dim] bf16; k, v: [t, n_kv_heads, head_dim] bf16; lse: [n_heads, t] f32.
// Scores, exponentials and sums are f32; exponentials are rounded to bf16 where they meet values.
// Overwrites. head_dim is at most the HD of the instance; the rest of a tile is zero.
//
// A block has FLASH_FWD_ROWS queries of one head and goes over the keys that they see in steps of
// FLASH_FWD_KEYS, counted from the start of the sequence, so a sequence has the same bits whatever
// it is packed with. While a step's scores are computed its values are copied; while these are
// summed, the next step's keys.
//
// Source: Dao 2023 (arXiv 2307.08691), algorithm 1.

#include "include/flash.cuh"

namespace {

constexpr int KEYS = FLASH_FWD_KEYS;
constexpr int WARPS = FLASH_THREADS / WARP;

// HD: width of a tile's rows. MT: fragments of 16 queries of a warp. ANY: heads of any width.
template <int HD, int MT, bool ANY>
__device__ __forceinline__ void flash_fwd(bf16* out, float* lse, const bf16* q, const bf16* k,
                                          const bf16* v, const FlashTile* tiles,
                                          const FlashParams& p) {
    constexpr int ROWS = WARPS * MT * 16, NT = KEYS / 8;
    DYN_SMEM(smem);
    bf16* const qs = reinterpret_cast<bf16*>(smem);  // [ROWS, HD]
    bf16* const ks = qs + ROWS * HD;                 // [KEYS, HD]
    bf16* const vs = ks + KEYS * HD;                 // [KEYS, HD]

    // Heads of a group are neighbours in time and find their keys in the second-level cache.
    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);
    const FlashTile tile = tiles[blockIdx.y];
    const int first = int(tile.first), end = min(int(tile.len), first + ROWS);
    const HeadRows<const bf16> q_rows(q, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const bf16> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const bf16> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;

    // The warp's rows of the block, and the positions of the first and the last of them.
    const int warp_row = warp_id() * MT * 16;
    const int warp_first = first + warp_row, warp_last = warp_first + MT * 16 - 1;
    const int warp_first_key = first_key(warp_first, p.window);

    float o[MT][HD / 8][4], m[MT][2], l[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
        clear(o[mt]);
        m[mt][0] = m[mt][1] = -INFINITY;
        l[mt][0] = l[mt][1] = 0.f;
    }

    const int begin = first_key(first, p.window) / KEYS * KEYS;
    copy_head<ROWS, HD, ANY>(qs, q_rows, first, end);
    copy_head<KEYS, HD, ANY>(ks, k_rows, begin, end);
    cp_async_commit();
    for (int key = begin; key < end; key += KEYS) {
        cp_async_wait<0>();
        __syncthreads();
        copy_head<KEYS, HD, ANY>(vs, v_rows, key, end);
        cp_async_commit();
        // A step of which the warp sees nothing changes nothing.
        const bool seen = key <= warp_last && key + KEYS > warp_first_key;
        float s[MT][NT][4];
        if (seen) dots<HD, MT, NT>(s, qs, warp_row, ks, 0);
        cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < end) copy_head<KEYS, HD, ANY>(ks, k_rows, key + KEYS, end);
        cp_async_commit();
        if (!seen) continue;
        const bool whole = key + KEYS - 1 <= warp_first &&
                           uint32_t(warp_last - key) < p.window;
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
            const int pos[2] = {warp_first + mt * 16 + acc_row(0),
                                warp_first + mt * 16 + acc_row(2)};
            if (!whole) hide(s[mt], pos, key, p.window);
            float keep[2];
            soften(s[mt], m[mt], l[mt], keep, c);
            // Where no maximum rose the factors are 1.
            if (__any_sync(FULL_MASK, keep[0] != 1.f || keep[1] != 1.f)) scale_rows(o[mt], keep);
        }
        add_product<HD>(o, s, vs, 0);
    }

    // The warp's own queries in shared memory make room for its results, which leave in rows.
    const HeadRows<bf16> out_rows(out, tile, p.n_heads, head, p.head_dim);
    __syncwarp();
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + mt * 16 + acc_row(2 * half), pos = first + row;
            const float sum = quad_sum(l[mt][half]);
            // Rows behind the last query have seen zeroes at most; they are not written.
            const float factor = sum > 0.f ? 1.f / sum : sum;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
                const uint32_t pair =
                    pack_bf16(o[mt][n][2 * half] * factor, o[mt][n][2 * half + 1] * factor);
                Pack<bf16, 2> packed;
                memcpy(&packed, &pair, sizeof pair);
                packed.store(qs + swizzled<HD>(row, n * 8 + acc_col(0)));
            }
            if (pos < end && lane_id() % 4 == 0) {
                lse[size_t(head) * p.t + tile.start + pos] = fmaf(m[mt][half], p.scale, logf(sum));
            }
        }
    }
    __syncwarp();
    for (int i = lane_id(); i < MT * 16 * (HD / CHUNK); i += WARP) {
        const int row = warp_row + i / (HD / CHUNK), col = i % (HD / CHUNK) * CHUNK;
        const int pos = first + row, left = out_rows.head_dim - col;
        if (pos >= end || left <= 0) continue;
        const auto chunk = Pack<bf16, CHUNK>::load(qs + swizzled<HD>(row, col));
        bf16* const to = out_rows.row(pos) + col;
        if constexpr (!ANY) {
            chunk.store(to);
        } else {
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) {
                if (j < left) to[j] = chunk.v[j];
            }
        }
    }
}

}  // namespace

#define FLASH_FWD(name, hd, rows, any)                                                            \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                   \
        name(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,                  \
             const FlashTile* tiles, FlashParams p) {                                             \
        flash_fwd<hd, rows / (16 * WARPS), any>(out, lse, q, k, v, tiles, p);                     \
    }                                                                                             \
    PUNA_KERNEL(name)

FLASH_FWD(flash_fwd_bf16_64, 64, FLASH_FWD_ROWS, false)
FLASH_FWD(flash_fwd_bf16_80, 80, FLASH_FWD_ROWS, false)
FLASH_FWD(flash_fwd_bf16_96, 96, FLASH_FWD_ROWS, false)
FLASH_FWD(flash_fwd_bf16_128, 128, FLASH_FWD_ROWS, false)
FLASH_FWD(flash_fwd_bf16_256, 256, FLASH_FWD_ROWS_256, false)

// Widths that are no multiple of 8.
FLASH_FWD(flash_fwd_bf16_any_64, 64, FLASH_FWD_ROWS, true)
FLASH_FWD(flash_fwd_bf16_any_128, 128, FLASH_FWD_ROWS_256, true)
FLASH_FWD(flash_fwd_bf16_any_256, 256, FLASH_FWD_ROWS_256, true)
