// Causal attention inside packed sequences, forward and backward, f32 rows: formulas and layouts of
// flash_fwd.cu and flash_bwd.cu with every number f32, on plain multiply-adds. For exactness rather
// than speed. Overwrites.
//
// A block owns T rows (queries, or keys for dk and dv) and goes over T rows of the other side at a
// time, counted from the start of the sequence.

#include "include/f32_tile.cuh"
#include "include/flash.cuh"

namespace {

// Rows pos .. pos + T of a head; zeroes from row `end` on.
template <int T, int HD>
__device__ __forceinline__ void copy_head_f32(float* tile, const HeadRows<const float>& head,
                                              int pos, int end, const FlashParams& p) {
    copy_f32_tile<T, HD>(tile, head.head_dim, p.flags & FLASH_VECTORS, [&](int r) -> const float* {
        return pos + r < end ? head.row(pos + r) : nullptr;
    });
}

// Writes `factor` times the thread's part of a result [T, HD] whose first row is at `pos`.
template <int HD, int RI>
__device__ __forceinline__ void put_rows(const HeadRows<float>& head, int pos, int end,
                                         const float (&x)[RI][HD / TILE_COLS], float factor) {
#pragma unroll
    for (int i = 0; i < RI; ++i) {
        const int at = pos + thread_row() + i * TILE_ROWS;
        if (at >= end) continue;
#pragma unroll
        for (int j = 0; j < HD / TILE_COLS; ++j) {
            const int col = thread_col() + j * TILE_COLS;
            if (col < head.head_dim) head.row(at)[col] = x[i][j] * factor;
        }
    }
}

template <int HD, int T>
__device__ __forceinline__ void flash_fwd_f32(float* out, float* lse, const float* q,
                                              const float* k, const float* v,
                                              const FlashTile* tiles, const FlashParams& p) {
    constexpr int RI = T / TILE_ROWS, CJ = T / TILE_COLS;
    DYN_SMEM(smem);
    float* const qs = reinterpret_cast<float*>(smem);  // [T, HD]
    float* const ks = qs + T * F32_PITCH<HD>;          // [T, HD]
    float* const vs = ks + T * F32_PITCH<HD>;          // [T, HD]
    float* const ps = vs + T * F32_PITCH<HD>;          // [T, T]

    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);
    const FlashTile tile = tiles[blockIdx.y];
    const int first = int(tile.first), end = min(int(tile.len), first + T);
    const HeadRows<const float> q_rows(q, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const float> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const float> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;

    float o[RI][HD / TILE_COLS], m[RI], l[RI];
    clear_f32(o);
#pragma unroll
    for (int i = 0; i < RI; ++i) m[i] = -INFINITY, l[i] = 0.f;

    copy_head_f32<T, HD>(qs, q_rows, first, end, p);
    for (int key = first_key(first, p.window) / T * T; key < end; key += T) {
        copy_head_f32<T, HD>(ks, k_rows, key, end, p);
        copy_head_f32<T, HD>(vs, v_rows, key, end, p);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        float s[RI][CJ];
        dots_f32<HD>(s, qs, ks);
#pragma unroll
        for (int i = 0; i < RI; ++i) {
#pragma unroll
            for (int j = 0; j < CJ; ++j) {
                const int pos = first + thread_row() + i * TILE_ROWS;
                const int at = key + thread_col() + j * TILE_COLS;
                if (!sees(pos, at, p.window)) s[i][j] = -INFINITY;
            }
            const float keep = soften_f32(s[i], m[i], l[i], c);
#pragma unroll
            for (int j = 0; j < HD / TILE_COLS; ++j) o[i][j] *= keep;
        }
        put_f32(ps, s);
        __syncthreads();
        add_product_f32<HD, T>(o, ps, vs);
        __syncthreads();
    }

    const HeadRows<float> out_rows(out, tile, p.n_heads, head, p.head_dim);
#pragma unroll
    for (int i = 0; i < RI; ++i) {
        const int pos = first + thread_row() + i * TILE_ROWS;
        const float sum = row_sum(l[i]), factor = 1.f / sum;
        if (pos >= end) continue;
#pragma unroll
        for (int j = 0; j < HD / TILE_COLS; ++j) {
            const int col = thread_col() + j * TILE_COLS;
            if (col < out_rows.head_dim) out_rows.row(pos)[col] = o[i][j] * factor;
        }
        if (thread_col() == 0) {
            lse[size_t(head) * p.t + tile.start + pos] = fmaf(m[i], p.scale, logf(sum));
        }
    }
}

template <int HD, int T>
__device__ __forceinline__ void flash_bwd_dq_f32(float* dq, const float* dout, const float* q,
                                                 const float* k, const float* v, const float* lse,
                                                 const float* d, const FlashTile* tiles,
                                                 const FlashParams& p) {
    constexpr int RI = T / TILE_ROWS, CJ = T / TILE_COLS;
    DYN_SMEM(smem);
    float* const qs = reinterpret_cast<float*>(smem);  // [T, HD]
    float* const douts = qs + T * F32_PITCH<HD>;       // [T, HD]
    float* const ks = douts + T * F32_PITCH<HD>;       // [T, HD]
    float* const vs = ks + T * F32_PITCH<HD>;          // [T, HD]
    float* const dss = vs + T * F32_PITCH<HD>;         // [T, T]

    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);
    const FlashTile tile = tiles[blockIdx.y];
    const int first = int(tile.first), end = min(int(tile.len), first + T);
    const HeadRows<const float> q_rows(q, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const float> dout_rows(dout, tile, p.n_heads, head, p.head_dim);
    const HeadRows<const float> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const float> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;

    float sum[RI][HD / TILE_COLS], lse2[RI], dd[RI];
    clear_f32(sum);
#pragma unroll
    for (int i = 0; i < RI; ++i) {
        const int pos = first + thread_row() + i * TILE_ROWS;
        const size_t at = size_t(head) * p.t + tile.start + pos;
        lse2[i] = pos < end ? lse[at] * LOG2_E : 0.f;
        dd[i] = pos < end ? d[at] : 0.f;
    }
    copy_head_f32<T, HD>(qs, q_rows, first, end, p);
    copy_head_f32<T, HD>(douts, dout_rows, first, end, p);
    for (int key = first_key(first, p.window) / T * T; key < end; key += T) {
        copy_head_f32<T, HD>(ks, k_rows, key, end, p);
        copy_head_f32<T, HD>(vs, v_rows, key, end, p);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        float s[RI][CJ], ds[RI][CJ];
        dots_f32<HD>(s, qs, ks);
        dots_f32<HD>(ds, douts, vs);
#pragma unroll
        for (int i = 0; i < RI; ++i) {
#pragma unroll
            for (int j = 0; j < CJ; ++j) {
                const int pos = first + thread_row() + i * TILE_ROWS;
                const int at = key + thread_col() + j * TILE_COLS;
                const float prob =
                    sees(pos, at, p.window) ? ex2(fmaf(s[i][j], c, -lse2[i])) : 0.f;
                ds[i][j] = prob * (ds[i][j] - dd[i]);
            }
        }
        put_f32(dss, ds);
        __syncthreads();
        add_product_f32<HD, T>(sum, dss, ks);
        __syncthreads();
    }
    put_rows<HD>(HeadRows<float>(dq, tile, p.n_heads, head, p.head_dim), first, end, sum, p.scale);
}

// Rows of the products are keys, columns queries.
template <int HD, int T>
__device__ __forceinline__ void flash_bwd_dkdv_f32(float* dk, float* dv, const float* dout,
                                                   const float* q, const float* k, const float* v,
                                                   const float* lse, const float* d,
                                                   const FlashTile* tiles, const FlashParams& p) {
    constexpr int RI = T / TILE_ROWS, CJ = T / TILE_COLS;
    DYN_SMEM(smem);
    float* const ks = reinterpret_cast<float*>(smem);  // [T, HD]
    float* const vs = ks + T * F32_PITCH<HD>;          // [T, HD]
    float* const qs = vs + T * F32_PITCH<HD>;          // [T, HD]
    float* const douts = qs + T * F32_PITCH<HD>;       // [T, HD]
    float* const ps = douts + T * F32_PITCH<HD>;       // [T, T]
    float* const dss = ps + T * (T + 1);               // [T, T]

    const uint32_t kv_head = blockIdx.x, group = p.n_heads / p.n_kv_heads;
    const FlashTile tile = tiles[blockIdx.y];
    const int len = int(tile.len), first = int(tile.first), end = min(len, first + T);
    const HeadRows<const float> k_rows(k, tile, p.n_kv_heads, kv_head, p.head_dim);
    const HeadRows<const float> v_rows(v, tile, p.n_kv_heads, kv_head, p.head_dim);
    const float c = p.scale * LOG2_E;
    const int queries_end = uint32_t(len - (end - 1)) > p.window ? end - 1 + int(p.window) : len;

    float dk_sum[RI][HD / TILE_COLS], dv_sum[RI][HD / TILE_COLS];
    clear_f32(dk_sum);
    clear_f32(dv_sum);
    copy_head_f32<T, HD>(ks, k_rows, first, end, p);
    copy_head_f32<T, HD>(vs, v_rows, first, end, p);
    for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const HeadRows<const float> q_rows(q, tile, p.n_heads, head, p.head_dim);
        const HeadRows<const float> dout_rows(dout, tile, p.n_heads, head, p.head_dim);
        const size_t stats = size_t(head) * p.t + tile.start;
        for (int query = first; query < queries_end; query += T) {
            copy_head_f32<T, HD>(qs, q_rows, query, queries_end, p);
            copy_head_f32<T, HD>(douts, dout_rows, query, queries_end, p);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            float s[RI][CJ], ds[RI][CJ];
            dots_f32<HD>(s, ks, qs);
            dots_f32<HD>(ds, vs, douts);
#pragma unroll
            for (int j = 0; j < CJ; ++j) {
                const int at = query + thread_col() + j * TILE_COLS;
                const bool valid = at < queries_end;
                const float lse2 = valid ? lse[stats + at] * LOG2_E : 0.f;
                const float dd = valid ? d[stats + at] : 0.f;
#pragma unroll
                for (int i = 0; i < RI; ++i) {
                    const int key = first + thread_row() + i * TILE_ROWS;
                    const bool visible = valid && sees(at, key, p.window);
                    s[i][j] = visible ? ex2(fmaf(s[i][j], c, -lse2)) : 0.f;
                    ds[i][j] = s[i][j] * (ds[i][j] - dd);
                }
            }
            put_f32(ps, s);
            put_f32(dss, ds);
            __syncthreads();
            add_product_f32<HD, T>(dv_sum, ps, douts);
            add_product_f32<HD, T>(dk_sum, dss, qs);
            __syncthreads();
        }
    }
    put_rows<HD>(HeadRows<float>(dk, tile, p.n_kv_heads, kv_head, p.head_dim), first, end, dk_sum,
                 p.scale);
    put_rows<HD>(HeadRows<float>(dv, tile, p.n_kv_heads, kv_head, p.head_dim), first, end, dv_sum,
                 1.f);
}

}  // namespace

#define FLASH_F32(hd, rows)                                                                       \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS, 3)                                \
        flash_fwd_f32_##hd(float* out, float* lse, const float* q, const float* k,                \
                           const float* v, const FlashTile* tiles, FlashParams p) {               \
        flash_fwd_f32<hd, rows>(out, lse, q, k, v, tiles, p);                                     \
    }                                                                                             \
    PUNA_KERNEL(flash_fwd_f32_##hd)                                                               \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS, 3)                                \
        flash_bwd_dq_f32_##hd(float* dq, const float* dout, const float* q, const float* k,       \
                              const float* v, const float* lse, const float* d,                   \
                              const FlashTile* tiles, FlashParams p) {                            \
        flash_bwd_dq_f32<hd, rows>(dq, dout, q, k, v, lse, d, tiles, p);                          \
    }                                                                                             \
    PUNA_KERNEL(flash_bwd_dq_f32_##hd)                                                            \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS, 3)                                \
        flash_bwd_dkdv_f32_##hd(float* dk, float* dv, const float* dout, const float* q,          \
                                const float* k, const float* v, const float* lse, const float* d, \
                                const FlashTile* tiles, FlashParams p) {                          \
        flash_bwd_dkdv_f32<hd, rows>(dk, dv, dout, q, k, v, lse, d, tiles, p);                    \
    }                                                                                             \
    PUNA_KERNEL(flash_bwd_dkdv_f32_##hd)

FLASH_F32(64, FLASH_F32_ROWS)
FLASH_F32(128, FLASH_F32_ROWS)
FLASH_F32(256, FLASH_F32_ROWS_256)
