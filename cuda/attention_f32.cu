// Attention of new rows over caches of f32: formula and layouts of attention_bf16.cu with every number
// f32, on fused multiply-adds; nothing is rounded. For exactness rather than speed. Overwrites.
//
// A block owns T packed rows and goes over ATTENTION_F32_KEYS positions at a time. A score is one
// chain over the head's elements in order, a sum of values one chain over the chunk's positions; the
// sum of exponentials is 16 chains that are then added in pairs. None depends on T.

#include "include/attention.cuh"
#include "include/f32_tile.cuh"

namespace {

static_assert(ATTENTION_THREADS == FLASH_THREADS, "tiles of f32 are made for as many threads");

template <int HD, int T>
__device__ __forceinline__ void attend_f32(void* out, float* partials, const void* q,
                                           const AttentionSegment* segments,
                                           const AttentionTile* tiles, const AttentionParams& p) {
    constexpr int KEYS = ATTENTION_F32_KEYS, OF_CHUNK = ATTENTION_CHUNK / KEYS;
    constexpr int RI = T / TILE_ROWS, CJ = KEYS / TILE_COLS, DJ = HD / TILE_COLS;
    DYN_SMEM(smem);
    float* const qs = reinterpret_cast<float*>(smem);  // [T, HD]
    float* const ks = qs + T * F32_PITCH<HD>;          // [KEYS, HD]
    float* const vs = ks + KEYS * F32_PITCH<HD>;       // [KEYS, HD]
    float* const ps = vs + KEYS * F32_PITCH<HD>;       // [T, KEYS]

    const TileRows tile(segments, tiles, p, T);
    int begin, end;
    tile.steps<KEYS>(p, begin, end);
    if (begin >= end) return;
    const int seen = tile.last_pos + 1, pitch = int(p.pitch), head_dim = int(p.head_dim);
    const float c = p.scale * LOG2_E;

    const Operand from = queries(q, p);
    for (int i = int(threadIdx.x); i < T * (HD / READ); i += ATTENTION_THREADS) {
        const int row = i / (HD / READ), col = i % (HD / READ) * READ;
        float v[READ] = {};
        if (row < tile.rows && col < head_dim) {
            read_chunk(v, from, tile.at(row, p) + col, head_dim - col);
        }
#pragma unroll
        for (int j = 0; j < READ; ++j) qs[row * F32_PITCH<HD> + col + j] = v[j];
    }
    int pos[RI];
    // The chunk's state, and that of the chunks before.
    float m[RI], l[RI], o[RI][DJ], total_m[RI], total_l[RI], total[RI][DJ];
    clear_f32(o);
    clear_f32(total);
#pragma unroll
    for (int i = 0; i < RI; ++i) {
        // Rows that are not there see what the last one sees.
        pos[i] = tile.pos(min(thread_row() + i * TILE_ROWS, tile.rows - 1));
        m[i] = total_m[i] = -INFINITY;
        l[i] = total_l[i] = 0.f;
    }
    for (int step = begin; step < end; ++step) {
        const int key = step * KEYS;
        const auto copy = [&](float* to, uint64_t base) {
            const unsigned char* const page =
                page_of<CacheF32>(base, tile.segment, key / ATTENTION_PAGE, tile.kv_head,
                                  p.n_kv_heads, pitch, head_dim);
            const float* const rows = reinterpret_cast<const float*>(page);
            copy_f32_tile<KEYS, HD>(to, pitch, true, [&](int r) -> const float* {
                return key + r < seen ? rows + (key % ATTENTION_PAGE + r) * pitch : nullptr;
            });
        };
        copy(ks, tile.segment.keys);
        copy(vs, tile.segment.values);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        float s[RI][CJ];
        dots_f32<HD>(s, qs, ks);
#pragma unroll
        for (int i = 0; i < RI; ++i) {
#pragma unroll
            for (int j = 0; j < CJ; ++j) {
                const int at = key + thread_col() + j * TILE_COLS;
                if (!sees(pos[i], at, p.window)) s[i][j] = -INFINITY;
            }
            const float keep = soften_f32(s[i], m[i], l[i], c);
#pragma unroll
            for (int j = 0; j < DJ; ++j) o[i][j] *= keep;
        }
        put_f32(ps, s);
        __syncthreads();
        add_product_f32<HD, KEYS>(o, ps, vs);
        if (p.chunks == 0 && ((step + 1) % OF_CHUNK == 0 || step + 1 == end)) {
#pragma unroll
            for (int i = 0; i < RI; ++i) {
                const Merge by = merge(total_m[i], total_l[i], m[i], row_sum(l[i]), c);
#pragma unroll
                for (int j = 0; j < DJ; ++j) total[i][j] = by(total[i][j], o[i][j]);
                m[i] = -INFINITY;
                l[i] = 0.f;
            }
            clear_f32(o);
        }
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < RI; ++i) {
        const int row = thread_row() + i * TILE_ROWS;
        const float sum = row_sum(l[i]);
        if (row >= tile.rows) continue;
        if (p.chunks != 0) {
            const Partial to(partials, p, blockIdx.z);
#pragma unroll
            for (int j = 0; j < DJ; ++j) {
                to.sums[size_t(row) * p.width + thread_col() + j * TILE_COLS] = o[i][j];
            }
            if (thread_col() == 0) Pack<float, 2>{{m[i], sum}}.store(to.stats + 2 * row);
            continue;
        }
        const float factor = 1.f / total_l[i];
        const size_t at = tile.at(row, p);
#pragma unroll
        for (int j = 0; j < DJ; ++j) {
            const int col = thread_col() + j * TILE_COLS;
            const float x = divided(total[i][j], factor);
            if (col >= head_dim) continue;
            if (p.flags & ATTENTION_OUT_BF16) {
                static_cast<bf16*>(out)[at + col] = from_f32<bf16>(x);
            } else {
                static_cast<float*>(out)[at + col] = x;
            }
        }
    }
}

}  // namespace

#define ATTEND_F32(name, hd, rows)                                                                \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)                               \
        name(void* out, float* partials, const void* q, const AttentionSegment* segments,         \
             const AttentionTile* tiles, AttentionParams p) {                                     \
        attend_f32<hd, rows>(out, partials, q, segments, tiles, p);                               \
    }                                                                                             \
    PUNA_KERNEL(name)

ATTEND_F32(attend_f32_narrow_64, 64, ATTENTION_F32_NARROW)
ATTEND_F32(attend_f32_narrow_128, 128, ATTENTION_F32_NARROW)
ATTEND_F32(attend_f32_narrow_256, 256, ATTENTION_F32_NARROW)
ATTEND_F32(attend_f32_wide_64, 64, ATTENTION_F32_WIDE)
ATTEND_F32(attend_f32_wide_128, 128, ATTENTION_F32_WIDE)
