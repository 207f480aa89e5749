// What the kernels of attention over caches share: the place of a block's rows and of its sequence's
// pages, and how the results of chunks are merged.
//
// A page holds ATTENTION_PAGE positions: of keys [n_kv_heads][64][pitch], of values likewise, pitch
// being head_dim rounded up to whole 16 bytes with zeroes behind. In q8_0 the 64 rows of a head are
// followed by their scales [64][groups] f32. Page i of a sequence is page table[i] of the cache, or
// page i where there is no table.
//
// The query heads that share a key head are packed: packed row r of a segment is its row r / group
// and query head r % group, so keys and values are read once for all of them.
//
// A row's positions are cut into chunks of ATTENTION_CHUNK, counted from position 0. A chunk's
// state (softmax.cuh) is made from nothing, page by page in order; chunks are merged from left to
// right. That chain is one and the same whether one block goes over all chunks or each chunk has a
// block of its own and a second kernel merges: a row has the same bits in either form.
#pragma once

#include "attention.h"
#include "operand.cuh"
#include "softmax.cuh"

// Chunk boundaries are page boundaries.
constexpr int PAGES_OF_CHUNK = ATTENTION_CHUNK / ATTENTION_PAGE;
static_assert(ATTENTION_CHUNK % ATTENTION_PAGE == 0, "a chunk is whole pages");

// How a cache stores rows.
struct CacheF32 {
    static constexpr int BYTES = 4;
    static constexpr bool SCALED = false;
};
struct CacheF16 {
    static constexpr int BYTES = 2;
    static constexpr bool SCALED = false;
};
struct CacheBf16 {
    static constexpr int BYTES = 2;
    static constexpr bool SCALED = false;
};
struct CacheQ8 {
    static constexpr int BYTES = 1;
    static constexpr bool SCALED = true;
};

__host__ __device__ constexpr int scale_groups(int head_dim) {
    return (head_dim + ATTENTION_GROUP - 1) / ATTENTION_GROUP;
}

// Bytes of a page's part of one head.
template <class Cache> __device__ __forceinline__ size_t head_bytes(int pitch, int head_dim) {
    const int scales = Cache::SCALED ? 4 * scale_groups(head_dim) : 0;
    return size_t(ATTENTION_PAGE) * (pitch * Cache::BYTES + scales);
}

// The page of a sequence that holds positions 64 index .. 64 index + 64: keys or values from `base`.
template <class Cache>
__device__ __forceinline__ unsigned char* page_of(uint64_t base, const AttentionSegment& segment,
                                                  int index, uint32_t head, uint32_t n_kv_heads,
                                                  int pitch, int head_dim) {
    const uint32_t* const table = reinterpret_cast<const uint32_t*>(segment.table);
    const size_t page = table != nullptr ? table[index] : uint32_t(index);
    return reinterpret_cast<unsigned char*>(base) +
           (page * n_kv_heads + head) * head_bytes<Cache>(pitch, head_dim);
}

// A block's packed rows, those below `rows` being there.
struct TileRows {
    AttentionSegment segment;
    uint32_t kv_head;
    int group;
    int first, rows;
    // Positions of its first and of its last row.
    int first_pos, last_pos;

    __device__ __forceinline__ TileRows(const AttentionSegment* segments,
                                        const AttentionTile* tiles, const AttentionParams& p,
                                        int tile_rows)
        : kv_head(blockIdx.y), group(int(p.n_heads / p.n_kv_heads)) {
        const AttentionTile tile = tiles[blockIdx.x];
        segment = segments[tile.segment];
        first = int(tile.first);
        rows = min(tile_rows, int(segment.n_rows) * group - first);
        first_pos = pos(0);
        last_pos = pos(rows - 1);
    }

    __device__ __forceinline__ int pos(int row) const {
        return int(segment.first_pos) + (first + row) / group;
    }

    // Element 0 of a packed row in q or out.
    __device__ __forceinline__ size_t at(int row, const AttentionParams& p) const {
        const int packed = first + row;
        const size_t of_q = size_t(segment.first_row) + packed / group;
        const uint32_t head = kv_head * group + packed % group;
        return (of_q * p.n_heads + head) * p.head_dim;
    }

    // Steps of KEYS positions that the block goes over; none where its chunk is not the tile's.
    template <int KEYS>
    __device__ __forceinline__ void steps(const AttentionParams& p, int& begin, int& end) const {
        constexpr int OF_CHUNK = ATTENTION_CHUNK / KEYS;
        begin = first_key(first_pos, p.window) / KEYS;
        end = last_pos / KEYS + 1;
        if (p.chunks != 0) {
            begin = max(begin, int(blockIdx.z) * OF_CHUNK);
            end = min(end, (int(blockIdx.z) + 1) * OF_CHUNK);
        }
    }
};

// The partial results of one tile, key head and chunk: sums [tile_rows, width], then m and l of
// each row.
struct Partial {
    float* sums;
    float* stats;

    __device__ __forceinline__ Partial(float* base, const AttentionParams& p, uint32_t chunk) {
        const size_t slot = (size_t(blockIdx.x) * p.n_kv_heads + blockIdx.y) * p.chunks + chunk;
        sums = base + slot * p.tile_rows * (p.width + ATTENTION_STATS);
        stats = sums + size_t(p.tile_rows) * p.width;
    }
};

// What the sums before and those of a chunk are multiplied by.
struct Merge {
    float before, chunk;

    __device__ __forceinline__ float operator()(float sum, float of_chunk) const {
        return fmaf(of_chunk, chunk, sum * before);
    }
};

// Takes a chunk's maximum and sum into the row's. A chunk of which the row sees nothing (-inf, 0)
// leaves both.
__device__ __forceinline__ Merge merge(float& m, float& l, float chunk_m, float chunk_l, float c) {
    const float max = fmaxf(m, chunk_m);
    const Merge by = {rescale(m, max, c), rescale(chunk_m, max, c)};
    m = max;
    l = by(l, chunk_l);
    return by;
}

// A sum divided by its row's: zeroes become +0, whose sign otherwise told which pages were skipped.
__device__ __forceinline__ float divided(float sum, float factor) { return fmaf(sum, factor, 0.f); }

// Writes two neighbouring outputs from `col` on of the row that begins at `at`.
__device__ __forceinline__ void put_out(void* out, size_t at, int col, float v0, float v1,
                                        const AttentionParams& p) {
    const int left = int(p.head_dim) - col;
    if (p.flags & ATTENTION_OUT_BF16) {
        bf16* const to = static_cast<bf16*>(out) + at + col;
        if ((p.flags & ATTENTION_PAIRS) && left >= 2) {
            Pack<bf16, 2>{{from_f32<bf16>(v0), from_f32<bf16>(v1)}}.store(to);
        } else {
            if (left >= 1) to[0] = from_f32<bf16>(v0);
            if (left >= 2) to[1] = from_f32<bf16>(v1);
        }
    } else {
        float* const to = static_cast<float*>(out) + at + col;
        if ((p.flags & ATTENTION_PAIRS) && left >= 2) {
            Pack<float, 2>{{v0, v1}}.store(to);
        } else {
            if (left >= 1) to[0] = v0;
            if (left >= 2) to[1] = v1;
        }
    }
}

__device__ __forceinline__ Operand queries(const void* q, const AttentionParams& p) {
    return {q, p.q_type, (p.flags & ATTENTION_Q_VECTORS) != 0};
}
