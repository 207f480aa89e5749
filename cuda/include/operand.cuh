// Factors of a product whose element type and alignment are known at run time only: read in chunks
// of 8 as f32, the branch being the same for a whole block.
#pragma once

#include <cuda_fp16.h>

#include "dtype.cuh"
#include "matmul.h"

// Elements that are read together.
constexpr int READ = 8;

struct Operand {
    const void* base;
    // MATMUL_F32, MATMUL_BF16 or MATMUL_F16.
    uint32_t type;
    // Whether chunks are 16-byte aligned and none is cut by the end of a row.
    bool vectors;
};

__device__ __forceinline__ float read_one(const Operand& x, size_t at) {
    switch (x.type) {
        case MATMUL_BF16: return to_f32(static_cast<const bf16*>(x.base)[at]);
        case MATMUL_F16: return __half2float(static_cast<const __half*>(x.base)[at]);
        default: return static_cast<const float*>(x.base)[at];
    }
}

// Elements at .. at + 8; those from `left` on are zero and are not read.
__device__ __forceinline__ void read_chunk(float (&v)[READ], const Operand& x, size_t at,
                                           int64_t left PUNA_AT) {
    if (left >= READ && x.vectors) {
        if (x.type == MATMUL_F32) {
            const float* from = static_cast<const float*>(x.base) + at;
            const auto lo = Pack<float, 4>::load(from PUNA_PASS);
            const auto hi = Pack<float, 4>::load(from + 4 PUNA_PASS);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = lo.v[i], v[4 + i] = hi.v[i];
        } else if (x.type == MATMUL_BF16) {
            const auto all = Pack<bf16, 8>::load(static_cast<const bf16*>(x.base) + at PUNA_PASS);
#pragma unroll
            for (int i = 0; i < READ; ++i) v[i] = to_f32(all.v[i]);
        } else {
            const auto all =
                Pack<__half, 8>::load(static_cast<const __half*>(x.base) + at PUNA_PASS);
#pragma unroll
            for (int i = 0; i < READ; ++i) v[i] = __half2float(all.v[i]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < READ; ++i) v[i] = i < left ? read_one(x, at + i) : 0.f;
}

// A chunk rounded to bf16, to nearest even, as tensor cores take it.
__device__ __forceinline__ Pack<uint32_t, 4> round_chunk(const float (&v)[READ]) {
    Pack<uint32_t, 4> packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.v[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    return packed;
}
