// Updates of the optimisers, element by element over [n], and the sum of squares that clipping
// needs. Weights, moments and gradients are f32, and so is the arithmetic. `low`, where there is
// one, takes the new weights rounded to bf16 in the same pass.

#include "include/elements.cuh"
#include "include/optim.h"
#include "include/scan.cuh"

namespace {

// One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as PyTorch takes it, with g
// multiplied by grad_scale:
//   m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;
//   w = (1 - lr weight_decay) w - lr / bias_correction1 m / (sqrt(v / bias_correction2) + eps).
// w, m, v and low are overwritten.
template <bool LOW>
__device__ __forceinline__ void adamw(float* w, bf16* low, float* m, float* v, const float* g,
                                      const AdamWParams& p) {
    const Lanes own = lanes_of<OPTIM_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float weight[LANES], first[LANES], second[LANES], grad[LANES];
    load_lanes(weight, w + own.at, own.count, p.wide);
    load_lanes(first, m + own.at, own.count, p.wide);
    load_lanes(second, v + own.at, own.count, p.wide);
    load_lanes(grad, g + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const float d = grad[i] * p.grad_scale;
        first[i] = fmaf(d - first[i], p.new1, first[i]);
        second[i] = second[i] * p.beta2 + d * d * p.new2;
        const float direction = first[i] / fmaf(sqrtf(second[i]), p.root, p.eps);
        weight[i] = fmaf(direction, p.step, weight[i] * p.keep);
    }
    store_lanes(m + own.at, first, own.count, p.wide);
    store_lanes(v + own.at, second, own.count, p.wide);
    store_lanes(w + own.at, weight, own.count, p.wide);
    if constexpr (LOW) store_lanes(low + own.at, weight, own.count, p.wide);
}

// One step of gradient descent as PyTorch takes it, with g multiplied by grad_scale:
//   g += decay w;  momentum = p.momentum momentum + g;  w -= lr momentum,
// or w -= lr g without momentum. w, momentum and low are overwritten.
template <bool MOMENTUM, bool LOW>
__device__ __forceinline__ void sgd(float* w, bf16* low, float* momentum, const float* g,
                                    const SgdParams& p) {
    const Lanes own = lanes_of<OPTIM_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float weight[LANES], direction[LANES];
    load_lanes(weight, w + own.at, own.count, p.wide);
    load_lanes(direction, g + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        direction[i] = fmaf(weight[i], p.decay, direction[i] * p.grad_scale);
    }
    if constexpr (MOMENTUM) {
        float old[LANES];
        load_lanes(old, momentum + own.at, own.count, p.wide);
#pragma unroll
        for (int i = 0; i < LANES; ++i) direction[i] = fmaf(old[i], p.momentum, direction[i]);
        store_lanes(momentum + own.at, direction, own.count, p.wide);
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) weight[i] = fmaf(direction[i], p.step, weight[i]);
    store_lanes(w + own.at, weight, own.count, p.wide);
    if constexpr (LOW) store_lanes(low + own.at, weight, own.count, p.wide);
}

// sums[b] = sum of x^2 over the b-th SQUARES_CHUNK elements; sums: [ceil(n / SQUARES_CHUNK)] f64,
// x: [n]. LANES squares are added in f32, everything else in f64. Overwrites.
__device__ __forceinline__ void sum_of_squares(double* sums, const float* x,
                                               const SquaresParams& p) {
    const size_t first = size_t(blockIdx.x) * SQUARES_CHUNK;
    const size_t left = p.n - first;
    const int end = left < SQUARES_CHUNK ? int(left) : SQUARES_CHUNK;
    double sum = 0.0;
    for (int at = threadIdx.x * LANES; at < end; at += SQUARES_THREADS * LANES) {
        float group[LANES];
        load_lanes(group, x + first + at, end - at < LANES ? end - at : LANES, p.wide);
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < LANES; ++i) squares = fmaf(group[i], group[i], squares);
        sum += double(squares);
    }
    sum = block_reduce<SQUARES_THREADS>(sum, Plus());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// total[0] = sum of sums, [n] f64: one block, each thread every SQUARES_THREADS-th, then the
// threads. Overwrites.
__device__ __forceinline__ void total(double* total, const double* sums, const SquaresParams& p) {
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < p.n; i += SQUARES_THREADS) sum += sums[i];
    sum = block_reduce<SQUARES_THREADS>(sum, Plus());
    if (threadIdx.x == 0) total[0] = sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    adamw_f32(float* w, float* m, float* v, const float* g, AdamWParams p) {
    adamw<false>(w, nullptr, m, v, g, p);
}
PUNA_KERNEL(adamw_f32)

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    adamw_low_bf16(float* w, bf16* low, float* m, float* v, const float* g, AdamWParams p) {
    adamw<true>(w, low, m, v, g, p);
}
PUNA_KERNEL(adamw_low_bf16)

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    sgd_f32(float* w, const float* g, SgdParams p) {
    sgd<false, false>(w, nullptr, nullptr, g, p);
}
PUNA_KERNEL(sgd_f32)

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    sgd_low_bf16(float* w, bf16* low, const float* g, SgdParams p) {
    sgd<false, true>(w, low, nullptr, g, p);
}
PUNA_KERNEL(sgd_low_bf16)

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    sgd_momentum_f32(float* w, float* momentum, const float* g, SgdParams p) {
    sgd<true, false>(w, nullptr, momentum, g, p);
}
PUNA_KERNEL(sgd_momentum_f32)

extern "C" __global__ void __launch_bounds__(OPTIM_THREADS)
    sgd_momentum_low_bf16(float* w, bf16* low, float* momentum, const float* g, SgdParams p) {
    sgd<true, true>(w, low, momentum, g, p);
}
PUNA_KERNEL(sgd_momentum_low_bf16)

extern "C" __global__ void __launch_bounds__(SQUARES_THREADS)
    sum_of_squares_f32(double* sums, const float* x, SquaresParams p) {
    sum_of_squares(sums, x, p);
}
PUNA_KERNEL(sum_of_squares_f32)

extern "C" __global__ void __launch_bounds__(SQUARES_THREADS)
    total_f64(double* out, const double* sums, SquaresParams p) {
    total(out, sums, p);
}
PUNA_KERNEL(total_f64)
