// Merges the partial results of the chunks of each row, from left to right, and divides: what a block
// of attention_*.cu that goes over all chunks does with the same operations in the same order.
//
// partials: [tiles, n_kv_heads, chunks] of sums [tile_rows, width] f32, then m and l of each row, as
// those kernels leave them. out: [m, n_heads, head_dim] f32 or bf16. Overwrites. A warp has one
// packed row. Source: Dao et al. 2022 (arXiv 2205.14135).

#include "include/attention.cuh"

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_merge(void* out, const float* partials, const AttentionSegment* segments,
                    const AttentionTile* tiles, AttentionParams p) {
    const TileRows tile(segments, tiles, p, int(p.tile_rows));
    const int row = int(blockIdx.z) * (ATTENTION_THREADS / WARP) + warp_id();
    if (row >= tile.rows) return;
    const int pos = tile.pos(row);
    const int first = first_key(pos, p.window) / ATTENTION_CHUNK, last = pos / ATTENTION_CHUNK;
    const float c = p.scale * LOG2_E;
    const size_t at = tile.at(row, p);
    // A chunk's results to the next one's.
    const size_t stride = size_t(p.tile_rows) * (p.width + ATTENTION_STATS);
    const Partial from(const_cast<float*>(partials), p, uint32_t(first));
    constexpr int N = 4;
    for (int col = lane_id() * N; col < int(p.head_dim); col += WARP * N) {
        const float* sums = from.sums + size_t(row) * p.width + col;
        const float* stats = from.stats + 2 * row;
        float m = -INFINITY, l = 0.f, o[N] = {};
        // Loads do not wait for the chain, so several are under way.
#pragma unroll 4
        for (int chunk = first; chunk <= last; ++chunk) {
            const auto of_chunk = Pack<float, N>::load(sums);
            const auto stat = Pack<float, 2>::load(stats);
            const Merge by = merge(m, l, stat.v[0], stat.v[1], c);
#pragma unroll
            for (int j = 0; j < N; ++j) o[j] = by(o[j], of_chunk.v[j]);
            sums += stride;
            stats += stride;
        }
        const float factor = 1.f / l;
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            put_out(out, at, col + j, divided(o[j], factor), divided(o[j + 1], factor), p);
        }
    }
}
PUNA_KERNEL(attention_merge)
