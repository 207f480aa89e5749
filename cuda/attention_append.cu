// Writes the keys (after RoPE) and values of new rows into the caches of their sequences, at
// positions first_pos.. of each segment, all segments of a batch in one launch.
//
// k, v: [m, n_kv_heads, head_dim] f32 or bf16; caches: pages as in include/attention.cuh. f16 and bf16
// are rounded to nearest even; q8_0 has, for each group of 32 numbers of a head's row,
//   scale = max |x| / 127,  code = round(x / scale), ties to even, computed as x * (1 / scale):
// a group whose scale would not be a normal number becomes zeroes, one that holds NaN or an infinity
// gets that as its scale, with codes 1. These are the bits of the CPU's cache. Overwrites.
//
// A warp has one group of one row. blockIdx.y: segment; blockIdx.z: 0 keys, 1 values.

#include <cuda_fp16.h>

#include "include/attention.cuh"
#include "include/reduce.cuh"

namespace {

__device__ __forceinline__ void put(CacheF32, void* row, int d, float x) {
    static_cast<float*>(row)[d] = x;
}
__device__ __forceinline__ void put(CacheF16, void* row, int d, float x) {
    static_cast<__half*>(row)[d] = __float2half_rn(x);
}
__device__ __forceinline__ void put(CacheBf16, void* row, int d, float x) {
    static_cast<bf16*>(row)[d] = from_f32<bf16>(x);
}

// This lane's code and the group's scale.
__device__ __forceinline__ int8_t quantise(float x, float& scale) {
    const float largest = warp_max(fabsf(x));
    if (__any_sync(FULL_MASK, !isfinite(x))) {
        scale = isinf(largest) ? largest : NAN;
        return 1;
    }
    constexpr float LEAST_NORMAL = 1.17549435e-38f;
    scale = largest / 127.f;
    if (scale < LEAST_NORMAL) {
        scale = 0.f;
        return 0;
    }
    return int8_t(rintf(x * (1.f / scale)));
}

template <class Cache>
__device__ __forceinline__ void append(const void* k, const void* v,
                                       const AttentionSegment* segments,
                                       const AttentionAppendParams& p) {
    const AttentionSegment segment = segments[blockIdx.y];
    const int head_dim = int(p.head_dim), pitch = int(p.pitch);
    const uint32_t groups = uint32_t(scale_groups(pitch)), of_row = p.n_kv_heads * groups;
    const uint32_t unit = blockIdx.x * (ATTENTION_THREADS / WARP) + warp_id();
    const uint32_t row = unit / of_row, head = unit % of_row / groups, group = unit % groups;
    if (row >= segment.n_rows) return;

    const Operand from = {blockIdx.z == 0 ? k : v, p.type, false};
    const int d = int(group) * ATTENTION_GROUP + lane_id();
    const size_t at = (size_t(segment.first_row) + row) * p.n_kv_heads + head;
    const float x = d < head_dim ? read_one(from, at * head_dim + d) : 0.f;

    const int pos = int(segment.first_pos + row), slot = pos % ATTENTION_PAGE;
    unsigned char* const page =
        page_of<Cache>(blockIdx.z == 0 ? segment.keys : segment.values, segment,
                       pos / ATTENTION_PAGE, head, p.n_kv_heads, pitch, head_dim);
    unsigned char* const to = page + slot * pitch * Cache::BYTES;
    if constexpr (Cache::SCALED) {
        float scale;
        const int8_t code = quantise(x, scale);
        if (d < pitch) reinterpret_cast<int8_t*>(to)[d] = d < head_dim ? code : int8_t(0);
        if (lane_id() == 0) {
            float* const scales = reinterpret_cast<float*>(page + ATTENTION_PAGE * pitch);
            scales[slot * groups + group] = scale;
        }
    } else {
        if (d < pitch) put(Cache(), to, d, x);
    }
}

}  // namespace

#define ATTENTION_APPEND(type, cache)                                                             \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)                               \
        attention_append_##type(const void* k, const void* v, const AttentionSegment* segments,   \
                                AttentionAppendParams p) {                                        \
        append<cache>(k, v, segments, p);                                                         \
    }                                                                                             \
    PUNA_KERNEL(attention_append_##type)

ATTENTION_APPEND(f32, CacheF32)
ATTENTION_APPEND(f16, CacheF16)
ATTENTION_APPEND(bf16, CacheBf16)
ATTENTION_APPEND(q8_0, CacheQ8)
