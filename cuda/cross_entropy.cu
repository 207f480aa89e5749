// Cross-entropy of rows of logits with one right answer each, fused with its gradient. A block has
// a row and goes over it two times (largest logit; sum of exponentials), three for the gradient.
//
// Logits f32; exponentials f32, their sum and its logarithm f64: four exponentials are added in f32,
// everything else in f64, in an order that the length of the row alone decides. A NaN, plus
// infinity, or nothing but minus infinity makes the row's results NaN.

#include "include/cross_entropy.h"
#include "include/elements.cuh"
#include "include/reduce.cuh"
#include "include/scan.cuh"

namespace {

constexpr int THREADS = CROSS_ENTROPY_THREADS;
// Logits that a thread takes at a time: 16 bytes.
constexpr int GROUP = 4;

// The `count` logits (GROUP but at a row's end) that follow `at`; minus infinity after them.
__device__ __forceinline__ int load_group(float (&to)[GROUP], const float* x, uint32_t at,
                                          const CrossEntropyParams& p) {
    if (p.wide) {
        load_f32<GROUP>(to, x + at);
        return GROUP;
    }
    const int count = p.vocab - at < GROUP ? int(p.vocab - at) : GROUP;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) to[i] = i < count ? x[at + i] : -INFINITY;
    return count;
}

struct LogSum {
    float max;
    // Sum of exp(x - max).
    double sum;
    // Whether an earlier logit than `label` equals the largest.
    bool earlier;
};

// ln(sum(exp(x))) as max + ln(sum): no logit is too large.
__device__ __forceinline__ LogSum log_sum(const float* x, uint32_t label,
                                          const CrossEntropyParams& p) {
    float max = -INFINITY;
    float group[GROUP];
    for (uint32_t at = threadIdx.x * GROUP; at < p.vocab; at += THREADS * GROUP) {
        load_group(group, x, at, p);
#pragma unroll
        for (int i = 0; i < GROUP; ++i) max = fmaxf(max, group[i]);
    }
    max = block_max<THREADS>(max);
    double sum = 0.0;
    float earlier = 0.f;
    for (uint32_t at = threadIdx.x * GROUP; at < p.vocab; at += THREADS * GROUP) {
        load_group(group, x, at, p);
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            if (group[i] == max && at + i < label) earlier = 1.f;
            group[i] = expf(group[i] - max);
        }
        sum += double((group[0] + group[1]) + (group[2] + group[3]));
    }
    sum = block_reduce<THREADS>(sum, Plus());
    earlier = block_max<THREADS>(earlier);
    return {max, sum, earlier > 0.f};
}

// scores[row] = (ln(sum(exp(x))) - x[label], 1 where the label is the first of the largest logits,
// else 0); GRAD: x = (softmax(x) - onehot(label)) factor. A row whose label is negative gives zeroes;
// one whose label is no logit's, NaN.
// scores: [rows, 2]; logits: [rows, vocab]; labels: [rows]; factors: [rows], read with GRAD alone.
template <bool GRAD, class Logit>
__device__ __forceinline__ void cross_entropy(float* scores, Logit* logits, const int32_t* labels,
                                              const float* factors, const CrossEntropyParams& p) {
    const size_t row = blockIdx.x;
    Logit* const x = logits + row * p.vocab;
    const int32_t label = labels[row];
    if (label < 0) {
        if (threadIdx.x < 2) scores[2 * row + threadIdx.x] = 0.f;
        if constexpr (GRAD) {
            for (uint32_t at = threadIdx.x; at < p.vocab; at += THREADS) x[at] = 0.f;
        }
        return;
    }
    const bool known = uint32_t(label) < p.vocab;
    const float nan = __uint_as_float(0x7fc00000u);
    // Every thread has read it before the first barrier, and nobody writes before that.
    const float at_label = known ? x[label] : nan;
    const LogSum all = log_sum(x, uint32_t(label), p);
    if (threadIdx.x == 0) {
        const double nll = (double(all.max) - double(at_label)) + log(all.sum);
        scores[2 * row] = float(nll);
        scores[2 * row + 1] = at_label == all.max && !all.earlier ? 1.f : 0.f;
    }
    if constexpr (GRAD) {
        const float factor = known ? factors[row] : nan;
        const float to_probability = float(double(factor) / all.sum);
        float group[GROUP];
        for (uint32_t at = threadIdx.x * GROUP; at < p.vocab; at += THREADS * GROUP) {
            const int count = load_group(group, x, at, p);
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                group[i] = expf(group[i] - all.max) * to_probability;
                if (at + i == uint32_t(label)) group[i] -= factor;
            }
            if (p.wide) {
                store_f32<GROUP>(x + at, group);
            } else {
                for (int i = 0; i < count; ++i) x[at + i] = group[i];
            }
        }
    }
}

// out[row] = ln(sum(exp(x))); out: [rows], logits: [rows, vocab].
__device__ __forceinline__ void log_sum_exp(float* out, const float* logits,
                                            const CrossEntropyParams& p) {
    const LogSum all = log_sum(logits + size_t(blockIdx.x) * p.vocab, 0, p);
    if (threadIdx.x == 0) out[blockIdx.x] = float(double(all.max) + log(all.sum));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(CROSS_ENTROPY_THREADS)
    cross_entropy_f32(float* scores, const float* logits, const int32_t* labels,
                      CrossEntropyParams p) {
    cross_entropy<false>(scores, logits, labels, nullptr, p);
}
PUNA_KERNEL(cross_entropy_f32)

extern "C" __global__ void __launch_bounds__(CROSS_ENTROPY_THREADS)
    cross_entropy_grad_f32(float* scores, float* logits, const int32_t* labels,
                           const float* factors, CrossEntropyParams p) {
    cross_entropy<true>(scores, logits, labels, factors, p);
}
PUNA_KERNEL(cross_entropy_grad_f32)

extern "C" __global__ void __launch_bounds__(CROSS_ENTROPY_THREADS)
    log_sum_exp_f32(float* out, const float* logits, CrossEntropyParams p) {
    log_sum_exp(out, logits, p);
}
PUNA_KERNEL(log_sum_exp_f32)
