// Element-wise sums, their column sums backward, scaling, conversion, dropout. Arrays are f32 or
// bf16, arithmetic f32, each result rounded once to its type. Every kernel's thread has LANES
// neighbouring elements.

#include "include/elements.cuh"
#include "include/elementwise.h"

namespace {

// x += y, both [n].
template <class X, class Y>
__device__ __forceinline__ void add_acc(X* x, const Y* y, const ElementsParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float a[LANES], b[LANES];
    load_lanes(a, x + own.at, own.count, p.wide);
    load_lanes(b, y + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) a[i] += b[i];
    store_lanes(x + own.at, a, own.count, p.wide);
}

// out = x, both [n]: exact, or to the nearest even. Overwrites. Within a type the caller copies
// bytes.
template <class O, class X>
__device__ __forceinline__ void convert(O* out, const X* x, const ElementsParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float a[LANES];
    load_lanes(a, x + own.at, own.count, p.wide);
    store_lanes(out + own.at, a, own.count, p.wide);
}

// x *= value, [n].
template <class X> __device__ __forceinline__ void scale(X* x, const ElementsParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float a[LANES];
    load_lanes(a, x + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) a[i] *= p.value;
    store_lanes(x + own.at, a, own.count, p.wide);
}

// x = value, [n]. Overwrites.
template <class X> __device__ __forceinline__ void fill(X* x, const ElementsParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float a[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i) a[i] = p.value;
    store_lanes(x + own.at, a, own.count, p.wide);
}

// x[row] += bias for each row; x: [rows, columns], bias: [columns] f32.
template <class X>
__device__ __forceinline__ void add_bias_acc(X* x, const float* bias, const BiasParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.y, p.columns);
    if (own.count == 0) return;
    x += size_t(blockIdx.x) * p.columns + own.at;
    float a[LANES], b[LANES];
    load_lanes(a, x, own.count, p.wide);
    load_lanes(b, bias + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) a[i] += b[i];
    store_lanes(x, a, own.count, p.wide);
}

// dbias += the sum of the rows of dout; dbias: [columns] f32, dout: [rows, columns].
// BIAS_GRAD_ROWS rows are summed first, row after row, and their sums added to dbias in their order.
// A warp forms the sum of every BIAS_WARPS-th such block of rows; warp 0 adds them.
template <class G>
__device__ __forceinline__ void bias_bwd_acc(float* dbias, const G* dout, const BiasParams& p) {
    __shared__ float sums[BIAS_WARPS][BIAS_COLUMNS];
    const uint32_t column = blockIdx.x * BIAS_COLUMNS + lane_id();
    const bool inside = column < p.columns;
    const int warp = warp_id();
    float total = warp == 0 && inside ? dbias[column] : 0.f;
    for (uint64_t first = 0; first < p.rows; first += BIAS_WARPS * BIAS_GRAD_ROWS) {
        const uint64_t begin = first + uint64_t(warp) * BIAS_GRAD_ROWS;
        const uint64_t end = begin + BIAS_GRAD_ROWS < p.rows ? begin + BIAS_GRAD_ROWS : p.rows;
        float sum = 0.f;
        if (inside) {
#pragma unroll 8
            for (uint64_t row = begin; row < end; ++row) {
                sum += to_f32(dout[row * p.columns + column]);
            }
        }
        sums[warp][lane_id()] = sum;
        __syncthreads();
        if (warp == 0) {
            const uint64_t left = (p.rows - first + BIAS_GRAD_ROWS - 1) / BIAS_GRAD_ROWS;
            const int blocks = left < BIAS_WARPS ? int(left) : BIAS_WARPS;
            for (int w = 0; w < blocks; ++w) total += sums[w][lane_id()];
        }
        __syncthreads();
    }
    if (warp == 0 && inside) dbias[column] = total;
}

// The last steps of MurmurHash3 (Appleby, public domain): a bijection of 32 bits in which every bit
// depends on every other.
__device__ __forceinline__ uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ x >> 16;
}

// out[i] = x[i] factor where element first + i of the key's mask is kept, else x[i] 0; [n].
// Overwrites. The mask is that of the CPU's kernel, bit for bit: cpu/src/dropout.rs tells why it is
// made this way.
template <class O, class X>
__device__ __forceinline__ void dropout(O* out, const X* x, const DropoutParams& p) {
    const Lanes own = lanes_of<ELEMENTWISE_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float a[LANES];
    load_lanes(a, x + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const uint64_t at = p.first + own.at + i;
        const uint32_t low = mix(uint32_t(at) ^ uint32_t(p.key));
        const uint32_t hash = mix((low + uint32_t(at >> 32)) ^ uint32_t(p.key >> 32));
        a[i] *= hash >= p.limit ? p.factor : 0.f;
    }
    store_lanes(out + own.at, a, own.count, p.wide);
}

}  // namespace

// Names: the output's type first.
#define ONE(kernel, name, X)                                                                   \
    extern "C" __global__ void __launch_bounds__(ELEMENTWISE_THREADS)                          \
        name(X* x, ElementsParams p) {                                                         \
        kernel(x, p);                                                                          \
    }                                                                                          \
    PUNA_KERNEL(name)
#define TWO(kernel, name, X, Y, Params)                                                        \
    extern "C" __global__ void __launch_bounds__(ELEMENTWISE_THREADS)                          \
        name(X* x, const Y* y, Params p) {                                                     \
        kernel(x, y, p);                                                                       \
    }                                                                                          \
    PUNA_KERNEL(name)

ONE(scale, scale_f32, float)
ONE(fill, fill_f32, float)
ONE(fill, fill_bf16, bf16)

TWO(add_acc, add_acc_f32_f32, float, float, ElementsParams)
TWO(add_acc, add_acc_f32_bf16, float, bf16, ElementsParams)
TWO(add_acc, add_acc_bf16_f32, bf16, float, ElementsParams)
TWO(add_acc, add_acc_bf16_bf16, bf16, bf16, ElementsParams)

TWO(convert, convert_f32_bf16, float, bf16, ElementsParams)
TWO(convert, convert_bf16_f32, bf16, float, ElementsParams)

TWO(add_bias_acc, add_bias_acc_f32, float, float, BiasParams)
TWO(add_bias_acc, add_bias_acc_bf16, bf16, float, BiasParams)

TWO(dropout, dropout_f32_f32, float, float, DropoutParams)
TWO(dropout, dropout_f32_bf16, float, bf16, DropoutParams)
TWO(dropout, dropout_bf16_f32, bf16, float, DropoutParams)
TWO(dropout, dropout_bf16_bf16, bf16, bf16, DropoutParams)

#define BIAS_BWD(name, G)                                                                      \
    extern "C" __global__ void __launch_bounds__(BIAS_WARPS* WARP)                             \
        name(float* dbias, const G* dout, BiasParams p) {                                      \
        bias_bwd_acc(dbias, dout, p);                                                          \
    }                                                                                          \
    PUNA_KERNEL(name)

BIAS_BWD(bias_bwd_acc_f32, float)
BIAS_BWD(bias_bwd_acc_bf16, bf16)
