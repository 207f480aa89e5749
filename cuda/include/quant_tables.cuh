// What NF4's codes, and the bytes of its doubly quantised scales, stand for: the numbers of
// cpu/src/quant/nf4, which says where they come from.
#pragma once

#include "kernel.cuh"
#include "quant_blocks.h"

struct QuantTables {
    float v[16 + 256];
};

// Boundary `i` of `parts` equal parts of [0.1, 1], counted from the nearer end with one rounding:
// products and sums of so few bits are exact in f64.
constexpr float nested_boundary(int i, int parts) {
    const float step = (1.f - 0.1f) / float(parts);
    return i < (parts + 1) / 2 ? float(double(step) * i + double(0.1f))
                               : float(1.0 - double(step) * (parts - i));
}

constexpr QuantTables quant_tables() {
    QuantTables t = {{-1.f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                      -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.f,
                      0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,
                      0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                      0.7229568362236023f, 1.f}};
    const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.f};
    const int zero = 16 + 127;
    int at = 1;
    for (int power = 0; power < 7; ++power) {
        const int parts = 1 << power;
        for (int i = 0; i < parts; ++i, ++at) {
            const float middle =
                (nested_boundary(i, parts) + nested_boundary(i + 1, parts)) / 2.f;
            t.v[zero + at] = powers[power] * middle;
            t.v[zero - at] = -(powers[power] * middle);
        }
    }
    t.v[16 + 255] = 1.f;
    return t;
}

static __constant__ const QuantTables QUANT_TABLES = quant_tables();

// The first N numbers to shared memory, where lanes look different codes up at once (16 words in 16
// banks: no two of them conflict); a barrier before they are read is the caller's.
template <int N> __device__ __forceinline__ void fill_tables(float* tables) {
    for (int i = int(threadIdx.x); i < N; i += int(blockDim.x)) tables[i] = QUANT_TABLES.v[i];
}
