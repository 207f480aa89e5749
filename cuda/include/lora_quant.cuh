// Layers with a low-rank adapter whose weight is quantised: the formula, the order of sums and so the
// bits of lora.cu with the decoded weight rounded to bf16.
#pragma once

#include "lora_tile.cuh"
#include "quant_tile.cuh"

// Stages of W are read one stage ahead into registers and decoded on their way to the ring, as in
// quant_tile.cuh.
template <class F, bool BACK> struct QuantWeight {
    QuantView w;
    const QuantParams& p;
    QuantAhead<LoraShape<BACK>, F> ahead;
    float* tables;
    int col0;

    __device__ __forceinline__ void begin(int first, const MatmulParams&, bf16* behind) {
        col0 = first, tables = reinterpret_cast<float*>(behind);
    }
    __device__ __forceinline__ void copy(bf16*) {}
    __device__ __forceinline__ void read(int t) { ahead.read(w, p, col0, t); }
    __device__ __forceinline__ void store(bf16* tile, int t) {
        ahead.store(tile, w.offset, col0, t, tables);
    }
    template <class TileOf> __device__ __forceinline__ void start(int stages, TileOf tile_of) {
        if (stages > 0) read(0);
        if constexpr (F::TABLE > 0) {
            fill_tables<F::TABLE>(tables);
            __syncthreads();
        }
        if (stages > 0) store(tile_of(0), 0);
        if (stages > 1) read(1);
    }
    template <class TileOf>
    __device__ __forceinline__ void advance(int t, int stages, TileOf tile_of) {
        if (t + 1 < stages) store(tile_of(t + 1), t + 1);
        if (t + 2 < stages) read(t + 2);
    }
};

// Ranks up to 16 and 64. One adapter for all rows.
#define LORA_QUANT_INSTANCE(name, FORMAT, RANK)                                                    \
    extern "C" __global__ void __launch_bounds__(LORA_THREADS)                                     \
        name(void* out, float* u, const bf16* x, const uint8_t* codes, const uint8_t* high,        \
             const uint8_t* scales, const uint8_t* supers, const bf16* a, const bf16* b,           \
             const void* bias, LoraParams p, QuantParams q) {                                      \
        const QuantWeight<Quant<FORMAT>, false> w = {{codes, high, scales, supers, q.offset}, q};  \
        lora<RANK, false>(out, u, x, w, a, b, nullptr, nullptr, nullptr, bias, p);                 \
    }                                                                                              \
    PUNA_KERNEL(name)
#define LORA_QUANT(name, FORMAT)                                                                   \
    LORA_QUANT_INSTANCE(lora_##name##_r16, FORMAT, LORA_RANK_16)                                   \
    LORA_QUANT_INSTANCE(lora_##name##_r64, FORMAT, LORA_RANK_64)

// The derivative of the input.
#define LORA_BWD_QUANT_INSTANCE(name, FORMAT, RANK)                                                \
    extern "C" __global__ void __launch_bounds__(LORA_THREADS)                                     \
        name(void* dx, bf16* du, const bf16* dy, const uint8_t* codes, const uint8_t* high,        \
             const uint8_t* scales, const uint8_t* supers, const bf16* b, const bf16* a,           \
             LoraParams p, QuantParams q) {                                                        \
        const QuantWeight<Quant<FORMAT>, true> w = {{codes, high, scales, supers, q.offset}, q};   \
        lora<RANK, true>(dx, du, dy, w, b, a, nullptr, nullptr, nullptr, nullptr, p);              \
    }                                                                                              \
    PUNA_KERNEL(name)
#define LORA_BWD_QUANT(name, FORMAT)                                                               \
    LORA_BWD_QUANT_INSTANCE(lora_bwd_##name##_r16, FORMAT, LORA_RANK_16)                           \
    LORA_BWD_QUANT_INSTANCE(lora_bwd_##name##_r64, FORMAT, LORA_RANK_64)
