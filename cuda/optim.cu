// Updates of the optimisers, element by element, and the sum of squares that clipping needs: of all
// tensors of a model in one launch. Weights, moments and gradients are f32, and so is the arithmetic.
// `low`, where there is one, takes the new weights rounded to bf16 in the same pass.
//
// A launch has a list of tensors, each with the number of blocks before its first, and a block looks
// for its own by halving: ten readings of the cache, against some hundred of launches that a model
// with adapters would take. A tensor's elements are cut into blocks from its own beginning, so no
// bit depends on the company.

#include "include/elements.cuh"
#include "include/optim.h"
#include "include/scan.cuh"

namespace {

// The tensor of a block: the last whose first block is not behind it.
__device__ __forceinline__ OptimTensor tensor_of(const OptimTensor* tensors, uint32_t count,
                                                 unsigned block) {
    uint32_t at = 0, end = count;
    while (end - at > 1) {
        const uint32_t middle = at + (end - at) / 2;
        if (tensors[middle].first <= block) {
            at = middle;
        } else {
            end = middle;
        }
    }
    return tensors[at];
}

template <class T> __device__ __forceinline__ T* pointer(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

// One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as PyTorch takes it, with g
// multiplied by grad_scale:
//   m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;
//   w = (1 - lr weight_decay) w - lr / bias_correction1 m / (sqrt(v / bias_correction2) + eps).
// w, m, v and low are overwritten.
extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    adamw_f32(const OptimTensor* tensors, AdamWParams p) {
    const OptimTensor t = tensor_of(tensors, p.tensors, blockIdx.x);
    const Lanes own = lanes_of<OPTIM_THREADS>(unsigned(blockIdx.x - t.first), t.n);
    if (own.count == 0) return;
    const bool wide = t.wide != 0;
    float* const w = pointer<float>(t.w) + own.at;
    float* const m = pointer<float>(t.m) + own.at;
    float* const v = pointer<float>(t.v) + own.at;
    float weight[LANES], first[LANES], second[LANES], grad[LANES];
    load_lanes(weight, w, own.count, wide);
    load_lanes(first, m, own.count, wide);
    load_lanes(second, v, own.count, wide);
    load_lanes(grad, pointer<const float>(t.g) + own.at, own.count, wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const float d = grad[i] * p.grad_scale;
        first[i] = fmaf(d - first[i], p.new1, first[i]);
        second[i] = second[i] * p.beta2 + d * d * p.new2;
        const float direction = first[i] / fmaf(sqrtf(second[i]), p.root, p.eps);
        weight[i] = fmaf(direction, p.step, weight[i] * p.keep);
    }
    store_lanes(m, first, own.count, wide);
    store_lanes(v, second, own.count, wide);
    store_lanes(w, weight, own.count, wide);
    if (t.low != 0) store_lanes(pointer<bf16>(t.low) + own.at, weight, own.count, wide);
}
PUNA_KERNEL(adamw_f32)

// One step of gradient descent as PyTorch takes it, with g multiplied by grad_scale:
//   g += decay w;  momentum = p.momentum momentum + g;  w -= lr momentum,
// or w -= lr g without momentum. w, momentum and low are overwritten.
extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    sgd_f32(const OptimTensor* tensors, SgdParams p) {
    const OptimTensor t = tensor_of(tensors, p.tensors, blockIdx.x);
    const Lanes own = lanes_of<OPTIM_THREADS>(unsigned(blockIdx.x - t.first), t.n);
    if (own.count == 0) return;
    const bool wide = t.wide != 0;
    float* const w = pointer<float>(t.w) + own.at;
    float weight[LANES], direction[LANES];
    load_lanes(weight, w, own.count, wide);
    load_lanes(direction, pointer<const float>(t.g) + own.at, own.count, wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        direction[i] = fmaf(weight[i], p.decay, direction[i] * p.grad_scale);
    }
    if (t.m != 0) {
        float* const momentum = pointer<float>(t.m) + own.at;
        float old[LANES];
        load_lanes(old, momentum, own.count, wide);
#pragma unroll
        for (int i = 0; i < LANES; ++i) direction[i] = fmaf(old[i], p.momentum, direction[i]);
        store_lanes(momentum, direction, own.count, wide);
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) weight[i] = fmaf(direction[i], p.step, weight[i]);
    store_lanes(w, weight, own.count, wide);
    if (t.low != 0) store_lanes(pointer<bf16>(t.low) + own.at, weight, own.count, wide);
}
PUNA_KERNEL(sgd_f32)

// sums[b] = sum of x^2 over SQUARES_CHUNK elements of a tensor, the b-th chunk of all; sums: [blocks],
// f64. LANES squares are added in f32, everything else in f64. Overwrites.
extern "C" __global__ void __launch_bounds__(SQUARES_THREADS)
    sum_of_squares_f32(double* sums, const OptimTensor* tensors, SquaresParams p) {
    const OptimTensor t = tensor_of(tensors, p.tensors, blockIdx.x);
    const size_t first = size_t(blockIdx.x - t.first) * SQUARES_CHUNK;
    const float* const x = pointer<const float>(t.g) + first;
    const size_t left = t.n - first;
    const int end = left < SQUARES_CHUNK ? int(left) : SQUARES_CHUNK;
    double sum = 0.0;
    for (int at = threadIdx.x * LANES; at < end; at += SQUARES_THREADS * LANES) {
        float group[LANES];
        load_lanes(group, x + at, end - at < LANES ? end - at : LANES, t.wide != 0);
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < LANES; ++i) squares = fmaf(group[i], group[i], squares);
        sum += double(squares);
    }
    sum = block_reduce<SQUARES_THREADS>(sum, Plus());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
PUNA_KERNEL(sum_of_squares_f32)

// total[0] = sum of sums, [n] f64: one block, each thread every SQUARES_THREADS-th, then the
// threads. Overwrites.
extern "C" __global__ void __launch_bounds__(SQUARES_THREADS)
    total_f64(double* total, const double* sums, TotalParams p) {
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < p.n; i += SQUARES_THREADS) sum += sums[i];
    sum = block_reduce<SQUARES_THREADS>(sum, Plus());
    if (threadIdx.x == 0) total[0] = sum;
}
PUNA_KERNEL(total_f64)
