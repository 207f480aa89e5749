// Reductions and running sums of a block beyond those of f32 (reduce.cuh): any type that shuffles
// move, any operation. The order is fixed by the block's size alone.
#pragma once

#include "kernel.cuh"

struct Plus {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Larger {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};
struct Smaller {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};

// Pairs at distance 16, 8, 4, 2, 1; every lane gets the result.
template <class T, class Op> __device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = op(x, __shfl_xor_sync(FULL_MASK, x, distance));
    }
    return x;
}

// All THREADS threads of the block call, and get the result. May be called again at once: the first
// barrier waits for the readers of the call before.
template <int THREADS, class T, class Op> __device__ __forceinline__ T block_reduce(T x, Op op) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps of one block");
    __shared__ T of_warp[THREADS / WARP];
    x = warp_reduce(x, op);
    __syncthreads();
    if (lane_id() == 0) of_warp[warp_id()] = x;
    __syncthreads();
    T all = of_warp[0];
#pragma unroll 4
    for (int w = 1; w < THREADS / WARP; ++w) all = op(all, of_warp[w]);
    return all;
}

// The sum of `x` over the threads up to the caller, itself included, in the order of their numbers
// but for the pairing within a warp (Hillis and Steele 1986).
template <int THREADS, class T> __device__ __forceinline__ T block_prefix(T x) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps of one block");
    __shared__ T of_warp[THREADS / WARP];
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const T before = __shfl_up_sync(FULL_MASK, x, distance);
        if (lane_id() >= distance) x = before + x;
    }
    __syncthreads();
    if (lane_id() == WARP - 1) of_warp[warp_id()] = x;
    __syncthreads();
    T before = T();
    for (int w = 0; w < warp_id(); ++w) before = before + of_warp[w];
    return before + x;
}
