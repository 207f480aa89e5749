// Sums, maxima and the place of a maximum over a warp or a block. The order of every reduction is
// fixed by the block's size alone, so the same input gives the same bits.
#pragma once

#include "dtype.cuh"

// Pairs at distance 16, 8, 4, 2, 1: every lane computes the same value, as a + b is b + a.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(FULL_MASK, x, distance);
    }
    return x;
}

// A NaN is lost beside a number, as fmaxf has it.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, distance));
    }
    return x;
}

// A value and where it stands; among equal values the lowest index wins.
struct IndexedMax {
    float value;
    int index;
};

__device__ __forceinline__ IndexedMax larger(IndexedMax a, IndexedMax b) {
    const bool other = b.value > a.value || (b.value == a.value && b.index < a.index);
    return other ? b : a;
}

__device__ __forceinline__ IndexedMax warp_argmax(IndexedMax x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const IndexedMax other = {__shfl_xor_sync(FULL_MASK, x.value, distance),
                                  __shfl_xor_sync(FULL_MASK, x.index, distance)};
        x = larger(x, other);
    }
    return x;
}

// The reductions of a block of THREADS threads, all of which call; every thread gets the result.
// May be called again at once: the first barrier waits for the readers of the call before.
template <int THREADS> __device__ __forceinline__ float block_sum(float x) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps of one block");
    __shared__ float of_warp[THREADS / WARP];
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) of_warp[warp_id()] = x;
    __syncthreads();
    float sum = of_warp[0];
#pragma unroll
    for (int w = 1; w < THREADS / WARP; ++w) sum += of_warp[w];
    return sum;
}

template <int THREADS> __device__ __forceinline__ float block_max(float x) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps of one block");
    __shared__ float of_warp[THREADS / WARP];
    x = warp_max(x);
    __syncthreads();
    if (lane_id() == 0) of_warp[warp_id()] = x;
    __syncthreads();
    float largest = of_warp[0];
#pragma unroll
    for (int w = 1; w < THREADS / WARP; ++w) largest = fmaxf(largest, of_warp[w]);
    return largest;
}

template <int THREADS> __device__ __forceinline__ IndexedMax block_argmax(IndexedMax x) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps of one block");
    __shared__ IndexedMax of_warp[THREADS / WARP];
    x = warp_argmax(x);
    __syncthreads();
    if (lane_id() == 0) of_warp[warp_id()] = x;
    __syncthreads();
    IndexedMax largest = of_warp[0];
#pragma unroll
    for (int w = 1; w < THREADS / WARP; ++w) largest = larger(largest, of_warp[w]);
    return largest;
}
