// The meaning of ldmatrix and mma; cuda/include/ptx.cuh calls them.
#pragma once

#include <cmath>

#include "runtime.h"

namespace puna_host {

// What one lane brings to ldmatrix: the address of a row, and registers for N matrices.
struct MatrixLane {
    const void* row;
    uint32_t* registers;
};
void ldmatrix_warp(MatrixLane& lane, int n, bool transposed, const char* file, int line);

template <int N, bool TRANSPOSED>
inline void ldmatrix(uint32_t (&r)[N], const void* row, const char* file, int line) {
    MatrixLane lane{row, r};
    ldmatrix_warp(lane, N, TRANSPOSED, file, line);
}

// d [16, 8] += a [16, 16] b [16, 8]; bf16 factors, f32 sums in the order of k.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file, int line);

// The same of f16 factors.
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const char* file, int line);

// Subnormal numbers become zero, as instructions with `.ftz` do.
inline float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }

}  // namespace puna_host
