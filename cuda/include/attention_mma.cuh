// Attention over caches on tensor cores: the body of attention_f16.cu, attention_bf16.cu and
// attention_q8_0.cu. Formula, layouts and the order of sums: attention.cuh, softmax.cuh.
//
// Queries are rounded to the factors' 16-bit type, exponentials to the same where they meet values;
// q8_0 becomes bf16 in shared memory. Scores, exponentials and sums are f32. The sum of a row's
// exponentials is one more column of the product with the values, a column of ones: it is summed in
// the same order as the others, in every form of the kernel.
//
// WR fragments of 16 packed rows a block, WC warps each. The warps of a fragment compute the scores
// of KEYS / WC positions each, agree on the maximum, put the exponentials into shared memory, and
// then sum all positions for the columns that are theirs: so a block of few rows has four warps at
// work on one page. An element's chain of operations is the same for every WC.
#pragma once

#include <cuda_fp16.h>

#include "attention.cuh"

// The 16-bit types of factors. Tiles in shared memory are declared bf16 for both: 16 bits to move.
struct Bf16Factor {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) { return pack_bf16(lo, hi); }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
        mma_bf16(d, a, b);
    }
};
struct F16Factor {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
        const __half2 pair = __floats2half2_rn(lo, hi);
        uint32_t bits;
        memcpy(&bits, &pair, sizeof bits);
        return bits;
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
        mma_f16(d, a, b);
    }
};

template <class Cache> struct FactorOf { using type = Bf16Factor; };
template <> struct FactorOf<CacheF16> { using type = F16Factor; };

// Bytes of a page's keys, or of its values, in shared memory.
template <class Cache, int HD>
constexpr int PAGE_BYTES = ATTENTION_PAGE * (HD * Cache::BYTES +
                                             (Cache::SCALED ? 4 * scale_groups(HD) : 0));

// Begins the copy of one head of a page. 16-bit rows become a tile [64, HD], zero from row `rows` and
// from the pitch on; rows of q8_0 and their scales come as they lie. A loop of few registers: it
// runs while all others hold sums.
template <class Cache, int HD>
__device__ __forceinline__ void copy_page(unsigned char* to, const unsigned char* page, int rows,
                                          int pitch, int head_dim) {
    const int thread = opaque(int(threadIdx.x));
    if constexpr (Cache::SCALED) {
        const int bytes = int(head_bytes<Cache>(pitch, head_dim));
#pragma unroll 1
        for (int at = thread * 16; at < bytes; at += ATTENTION_THREADS * 16) {
            cp_async16(to + at, page + at);
        }
    } else {
        constexpr int CHUNKS = HD / CHUNK;
        // Threads of a row, and rows that all threads copy at once.
        constexpr int OF_ROW = (CHUNKS & (CHUNKS - 1)) == 0 ? CHUNKS : 8;
        constexpr int AT_ONCE = ATTENTION_THREADS / OF_ROW;
        static_assert(ATTENTION_PAGE % AT_ONCE == 0, "all threads have rows");
        bf16* const tile = reinterpret_cast<bf16*>(to);
        const bf16* const start = reinterpret_cast<const bf16*>(page);
        const int first = thread % OF_ROW * CHUNK;
        const bf16* from = start + thread / OF_ROW * pitch + first;
#pragma unroll 1
        for (int row = thread / OF_ROW; row < ATTENTION_PAGE; row += AT_ONCE) {
#pragma unroll
            for (int c = 0; c < HD; c += OF_ROW * CHUNK) {
                const int col = first + c;
                if (CHUNKS % OF_ROW != 0 && col >= HD) break;
                const bool valid = row < rows && col < pitch;
                cp_async16_zfill(tile + swizzled<HD>(row, col), valid ? from + c : start, valid);
            }
            from += AT_ONCE * pitch;
        }
    }
}

// Rows of q8_0 as `copy_page` left them become a tile [64, HD] of bf16, each code times its scale;
// zero from row `rows` on, whatever lies there.
template <int HD>
__device__ __forceinline__ void unpack_page(bf16* tile, const unsigned char* from, int rows,
                                            int pitch, int head_dim) {
    const int8_t* const codes = reinterpret_cast<const int8_t*>(from);
    const float* const scales = reinterpret_cast<const float*>(from + ATTENTION_PAGE * pitch);
    const int groups = scale_groups(head_dim);
#pragma unroll 2
    for (int i = opaque(int(threadIdx.x)); i < ATTENTION_PAGE * (HD / CHUNK);
         i += ATTENTION_THREADS) {
        const int row = i / (HD / CHUNK), col = i % (HD / CHUNK) * CHUNK;
        Pack<uint32_t, 4> packed{};
        if (row < rows && col < pitch) {
            const auto chunk = Pack<int8_t, CHUNK>::load(codes + row * pitch + col);
            const float scale = scales[row * groups + col / ATTENTION_GROUP];
#pragma unroll
            for (int j = 0; j < CHUNK / 2; ++j) {
                packed.v[j] = pack_bf16(float(chunk.v[2 * j]) * scale,
                                        float(chunk.v[2 * j + 1]) * scale);
            }
        }
        packed.store(reinterpret_cast<uint32_t*>(tile + swizzled<HD>(row, col)));
    }
}

// HD: width of a tile's rows, at least head_dim.
template <class Cache, int HD, int WR, int WC, int STAGES>
struct Attend {
    using Factor = typename FactorOf<Cache>::type;
    static constexpr int ROWS = 16 * WR, KEYS = ATTENTION_PAGE;
    static_assert(WR * WC * WARP == ATTENTION_THREADS, "all warps have work");
    // Fragments of 8 positions of a warp's scores; pairs of fragments of 8 columns of its sums.
    static constexpr int NT = KEYS / 8 / WC;
    static constexpr int PAIRS = HD / 16, OWN = (PAIRS + WC - 1) / WC;
    static constexpr int SLOT = 2 * PAGE_BYTES<Cache, HD>;

    bf16* qs;               // [ROWS, HD]
    bf16* ps;               // [ROWS, KEYS], where warps share rows
    float* tops;            // [WC, ROWS], likewise
    bf16* unpacked;         // [KEYS, HD], of q8_0: keys, then values
    unsigned char* ring;    // [STAGES]: keys, values

    // This warp's fragment of rows, and which of its warps it is.
    int warp_row, wc;
    // Positions of this lane's two rows.
    int pos[2];
    float c;
    // The chunk's state; the row's exponentials are summed in every column of `l`.
    float m[2], l[4], o[2 * OWN][4];

    __device__ __forceinline__ void begin_chunk() {
        m[0] = m[1] = -INFINITY;
#pragma unroll
        for (int i = 0; i < 4; ++i) l[i] = 0.f;
        clear(o);
    }

    // Whether the warp has a pair `j` of its columns, and which that is.
    __device__ __forceinline__ bool owns(int j) const {
        return PAIRS % WC == 0 || wc + j * WC < PAIRS;
    }
    __device__ __forceinline__ int first_col(int j) const { return (wc + j * WC) * 16; }

    __device__ __forceinline__ void copy_queries(const void* q, const TileRows& tile,
                                                 const AttentionParams& p) {
        const Operand from = queries(q, p);
#pragma unroll 1
        for (int i = int(threadIdx.x); i < ROWS * (HD / CHUNK); i += ATTENTION_THREADS) {
            const int row = i / (HD / CHUNK), col = i % (HD / CHUNK) * CHUNK;
            Pack<uint32_t, 4> packed{};
            if (row < tile.rows && col < int(p.head_dim)) {
                float v[READ];
                read_chunk(v, from, tile.at(row, p) + col, int(p.head_dim) - col);
#pragma unroll
                for (int j = 0; j < 4; ++j) packed.v[j] = Factor::pack(v[2 * j], v[2 * j + 1]);
            }
            packed.store(reinterpret_cast<uint32_t*>(qs + swizzled<HD>(row, col)));
        }
    }

    // Takes the page of positions key .. key + 64, of which `rows` are there, into the chunk's state.
    __device__ __forceinline__ void page(const unsigned char* slot, int key, int rows, bool whole,
                                         const AttentionParams& p) {
        const int pitch = int(p.pitch), head_dim = int(p.head_dim);
        const unsigned char* const values = slot + PAGE_BYTES<Cache, HD>;
        const bf16* ks = reinterpret_cast<const bf16*>(slot);
        const bf16* vs = reinterpret_cast<const bf16*>(values);
        if constexpr (Cache::SCALED) {
            unpack_page<HD>(unpacked, slot, rows, pitch, head_dim);
            ks = vs = unpacked;
            __syncthreads();
        }

        float s[NT][4];
        scores(s, ks);
        if (!whole) hide(s, pos, key + wc * NT * 8, p.window);
        float top[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float max = -INFINITY;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            }
            top[half] = quad_max(max);
        }
        if constexpr (WC > 1) {
            if (lane_id() % 4 == 0) {
                tops[wc * ROWS + warp_row + acc_row(0)] = top[0];
                tops[wc * ROWS + warp_row + acc_row(2)] = top[1];
            }
            __syncthreads();
#pragma unroll
            for (int w = 0; w < WC; ++w) {
                top[0] = fmaxf(top[0], tops[w * ROWS + warp_row + acc_row(0)]);
                top[1] = fmaxf(top[1], tops[w * ROWS + warp_row + acc_row(2)]);
            }
        } else if constexpr (Cache::SCALED) {
            // All have read the keys, which the values take the place of.
            __syncthreads();
        }
        if constexpr (Cache::SCALED) unpack_page<HD>(unpacked, values, rows, pitch, head_dim);

        float keep[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float max = fmaxf(m[half], top[half]);
            keep[half] = rescale(m[half], max, c);
            m[half] = max;
            // Nothing seen yet: 2^-inf without the NaN of -inf + inf.
            const float shift = max == -INFINITY ? 0.f : -max * c;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    s[n][i] = ex2(fmaf(s[n][i], c, shift));
                }
            }
        }
        // Where no maximum rose the factors are 1.
        if (__any_sync(FULL_MASK, keep[0] != 1.f || keep[1] != 1.f)) {
            scale_rows(o, keep);
#pragma unroll
            for (int i = 0; i < 4; ++i) l[i] *= keep[i / 2];
        }
        if constexpr (WC > 1) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                const int col = (wc * NT + n) * 8 + acc_col(0);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    Pack<uint32_t, 1>{{Factor::pack(s[n][2 * half], s[n][2 * half + 1])}}.store(
                        reinterpret_cast<uint32_t*>(
                            ps + swizzled<KEYS>(warp_row + acc_row(2 * half), col)));
                }
            }
        }
        if constexpr (WC > 1 || Cache::SCALED) __syncthreads();
        add_values(s, vs);
    }

    // HD / 16 products in order for each score.
    __device__ __forceinline__ void scores(float (&s)[NT][4], const bf16* ks) {
        clear(s);
        const int lane = opaque(lane_id());
#pragma unroll 2
        for (int k = 0; k < HD; k += 16) {
            uint32_t fa[4];
            load_a<HD>(fa, qs, warp_row, k, lane);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                uint32_t fb[2][2];
                load_b2<HD>(fb, ks, (wc * NT + n) * 8, k, lane);
                Factor::mma(s[n], fa, fb[0]);
                Factor::mma(s[n + 1], fa, fb[1]);
            }
        }
    }

    // KEYS / 16 products in order for each sum.
    __device__ __forceinline__ void add_values(const float (&s)[NT][4], const bf16* vs) {
        const int lane = opaque(lane_id());
        const uint32_t ones[2] = {Factor::pack(1.f, 1.f), Factor::pack(1.f, 1.f)};
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            uint32_t fa[4];
            if constexpr (WC > 1) {
                load_a<KEYS>(fa, ps, warp_row, k * 16, lane);
            } else {
                fa[0] = Factor::pack(s[2 * k][0], s[2 * k][1]);
                fa[1] = Factor::pack(s[2 * k][2], s[2 * k][3]);
                fa[2] = Factor::pack(s[2 * k + 1][0], s[2 * k + 1][1]);
                fa[3] = Factor::pack(s[2 * k + 1][2], s[2 * k + 1][3]);
            }
            Factor::mma(l, fa, ones);
#pragma unroll
            for (int j = 0; j < OWN; ++j) {
                if (!owns(j)) continue;
                uint32_t fb[2][2];
                load_b2_trans<HD>(fb, vs, k * 16, first_col(j), lane);
                Factor::mma(o[2 * j], fa, fb[0]);
                Factor::mma(o[2 * j + 1], fa, fb[1]);
            }
        }
    }

    // Calls put(half, col, v0, v1) with the neighbouring sums of each of this lane's rows.
    template <class Put>
    __device__ __forceinline__ void each_pair(const float (&x)[2 * OWN][4], Put put) {
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            if (!owns(j)) continue;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const int col = first_col(j) + n * 8 + acc_col(0);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    put(half, col, x[2 * j + n][2 * half], x[2 * j + n][2 * half + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void run(void* out, float* partials, const void* q,
                                        const AttentionSegment* segments,
                                        const AttentionTile* tiles, const AttentionParams& p) {
        DYN_SMEM(smem);
        qs = reinterpret_cast<bf16*>(smem);
        ps = qs + ROWS * HD;
        tops = reinterpret_cast<float*>(ps + (WC > 1 ? ROWS * KEYS : 0));
        unpacked = reinterpret_cast<bf16*>(tops + (WC > 1 ? WC * ROWS : 0));
        ring = reinterpret_cast<unsigned char*>(unpacked + (Cache::SCALED ? KEYS * HD : 0));

        const TileRows tile(segments, tiles, p, ROWS);
        int begin, end;
        tile.steps<KEYS>(p, begin, end);
        if (begin >= end) return;
        warp_row = warp_id() / WC * 16;
        wc = warp_id() % WC;
        int row[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            row[half] = warp_row + acc_row(2 * half);
            // Rows that are not there see what the last one sees.
            pos[half] = tile.pos(min(row[half], tile.rows - 1));
        }
        c = p.scale * LOG2_E;

        const int seen = tile.last_pos + 1;
        const auto copy = [&](int i) {
            unsigned char* const to = ring + (i - begin) % STAGES * SLOT;
            const int rows = seen - i * KEYS, pitch = int(p.pitch), head_dim = int(p.head_dim);
            const auto page = [&](uint64_t base) {
                return page_of<Cache>(base, tile.segment, i, tile.kv_head, p.n_kv_heads, pitch,
                                      head_dim);
            };
            copy_page<Cache, HD>(to, page(tile.segment.keys), rows, pitch, head_dim);
            copy_page<Cache, HD>(to + PAGE_BYTES<Cache, HD>, page(tile.segment.values), rows, pitch,
                                 head_dim);
        };
        if constexpr (STAGES == 2) {
            copy(begin);
            cp_async_commit();
        }
        copy_queries(q, tile, p);
        begin_chunk();
        // Of the chunks before.
        float total_m[2] = {-INFINITY, -INFINITY}, total_l[2] = {0.f, 0.f}, total[2 * OWN][4];
        clear(total);
#pragma unroll 1
        for (int i = begin; i < end; ++i) {
            if (i + STAGES - 1 < end) copy(i + STAGES - 1);
            cp_async_commit();
            cp_async_wait<STAGES - 1>();
            __syncthreads();
            // Whether every row sees every position of the page.
            const int key = i * KEYS;
            const bool whole = key + KEYS - 1 <= tile.first_pos &&
                               uint32_t(tile.last_pos - key) < p.window;
            page(ring + (i - begin) % STAGES * SLOT, key, seen - key, whole, p);
            if (p.chunks == 0 && ((i + 1) % PAGES_OF_CHUNK == 0 || i + 1 == end)) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const Merge by =
                        merge(total_m[half], total_l[half], m[half], l[2 * half], c);
#pragma unroll
                    for (int n = 0; n < 2 * OWN; ++n) {
#pragma unroll
                        for (int j = 2 * half; j < 2 * half + 2; ++j) {
                            total[n][j] = by(total[n][j], o[n][j]);
                        }
                    }
                }
                begin_chunk();
            }
            // All have left the slot that the next copies go to.
            __syncthreads();
        }

        if (p.chunks != 0) {
            const Partial to(partials, p, blockIdx.z);
            each_pair(o, [&](int half, int col, float v0, float v1) {
                if (row[half] >= tile.rows) return;
                Pack<float, 2>{{v0, v1}}.store(to.sums + size_t(row[half]) * p.width + col);
            });
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (wc == 0 && lane_id() % 4 == 0 && row[half] < tile.rows) {
                    Pack<float, 2>{{m[half], l[2 * half]}}.store(to.stats + 2 * row[half]);
                }
            }
            return;
        }
        const float factor[2] = {1.f / total_l[0], 1.f / total_l[1]};
        const size_t at[2] = {tile.at(row[0], p), tile.at(row[1], p)};
        each_pair(total, [&](int half, int col, float v0, float v1) {
            if (row[half] >= tile.rows) return;
            put_out(out, at[half], col, divided(v0, factor[half]), divided(v1, factor[half]), p);
        });
    }
};

#define ATTEND_INSTANCE(name, cache, hd, wr, wc, stages)                                          \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)                               \
        name(void* out, float* partials, const void* q, const AttentionSegment* segments,         \
             const AttentionTile* tiles, AttentionParams p) {                                     \
        Attend<cache, hd, wr, wc, stages> block;                                                  \
        block.run(out, partials, q, segments, tiles, p);                                          \
    }                                                                                             \
    PUNA_KERNEL(name)

// The narrow and the wide form for every width of a head.
#define ATTEND_KERNELS(type, cache)                                                               \
    ATTEND_INSTANCE(attend_##type##_narrow_64, cache, 64, 1, 4, ATTENTION_STAGES)                 \
    ATTEND_INSTANCE(attend_##type##_narrow_80, cache, 80, 1, 4, ATTENTION_STAGES)                 \
    ATTEND_INSTANCE(attend_##type##_narrow_96, cache, 96, 1, 4, ATTENTION_STAGES)                 \
    ATTEND_INSTANCE(attend_##type##_narrow_128, cache, 128, 1, 4, ATTENTION_STAGES)               \
    ATTEND_INSTANCE(attend_##type##_narrow_256, cache, 256, 1, 4, ATTENTION_STAGES_256)           \
    ATTEND_INSTANCE(attend_##type##_wide_64, cache, 64, 4, 1, ATTENTION_STAGES)                   \
    ATTEND_INSTANCE(attend_##type##_wide_80, cache, 80, 4, 1, ATTENTION_STAGES)                   \
    ATTEND_INSTANCE(attend_##type##_wide_96, cache, 96, 4, 1, ATTENTION_STAGES)                   \
    ATTEND_INSTANCE(attend_##type##_wide_128, cache, 128, 4, 1, ATTENTION_STAGES)                 \
    ATTEND_INSTANCE(attend_##type##_wide_256, cache, 256, 2, 2, ATTENTION_STAGES_256)
