// Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of many rows, in place:
//   (a, b) = (a cos - b sin, b cos + a sin)
// for each pair j < half of each head, by the angle whose cosine and sine are cos[row][j] and
// sin[row][j]. `interleaved` pairs elements 2j and 2j + 1, `half` elements j and j + half. Backwards
// (sign -1) it is the rotation by the opposite angle, which also takes the gradient of the result to
// that of x.
//
// x: [m, n_heads, head_dim], f32 or bf16; overwritten in its first 2 half elements of each head, the
// others stay. cos, sin: [m, half] f32. Arithmetic in f32; a bf16 result is rounded once more.

#include "include/elements.cuh"
#include "include/rope.h"

namespace {

// The thread's N neighbouring pairs.
template <class T, bool INTERLEAVED, int N>
__device__ __forceinline__ void rotate(T* x, const float* cos, const float* sin,
                                       const RopeParams& p) {
    const uint32_t of_head = p.half / N;
    const uint32_t at = blockIdx.y * ROPE_THREADS + threadIdx.x;
    const uint32_t head = at / of_head;
    if (head >= p.n_heads) return;
    const uint32_t pair = (at - head * of_head) * N;
    const size_t row = blockIdx.x;

    T* const start = x + (row * p.n_heads + head) * p.head_dim;
    T* const first = start + (INTERLEAVED ? 2 * pair : pair);
    T* const second = INTERLEAVED ? first + N : first + p.half;
    float lower[N], upper[N], c[N], s[N];
    load_f32<N>(lower, first);
    load_f32<N>(upper, second);
    load_f32<N>(c, cos + row * p.half + pair);
    load_f32<N>(s, sin + row * p.half + pair);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        // Interleaved, pair j stands at 2j and 2j + 1 of the 2N numbers loaded.
        float& a = !INTERLEAVED ? lower[j] : 2 * j < N ? lower[2 * j % N] : upper[2 * j % N];
        float& b = !INTERLEAVED ? upper[j]
                                : 2 * j + 1 < N ? lower[(2 * j + 1) % N] : upper[(2 * j + 1) % N];
        const float sine = s[j] * p.sign;
        const float new_a = a * c[j] - b * sine;
        b = b * c[j] + a * sine;
        a = new_a;
    }
    store_f32<N>(first, lower);
    store_f32<N>(second, upper);
}

template <class T, bool INTERLEAVED>
__device__ __forceinline__ void rope(T* x, const float* cos, const float* sin,
                                     const RopeParams& p) {
    if (p.wide) {
        rotate<T, INTERLEAVED, ROPE_PAIRS>(x, cos, sin, p);
    } else {
        rotate<T, INTERLEAVED, 1>(x, cos, sin, p);
    }
}

}  // namespace

#define ROPE(name, type, interleaved)                                                          \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS)                                 \
        name(type* x, const float* cos, const float* sin, RopeParams p) {                      \
        rope<type, interleaved>(x, cos, sin, p);                                               \
    }                                                                                          \
    PUNA_KERNEL(name)

ROPE(rope_half_f32, float, false)
ROPE(rope_half_bf16, bf16, false)
ROPE(rope_interleaved_f32, float, true)
ROPE(rope_interleaved_bf16, bf16, true)
