// Weights to NF4, in the codes and scales that the CPU's encoder (cpu/src/quant/nf4) gives, bit for
// bit: blocks of 64 run over the flat matrix, whatever its rows are.
//
//   scale = the largest magnitude of the block
//   code  = how many of the 15 midpoints between neighbouring codes w (1 / scale) is above
//
// The scales' own quantisation wants their mean in an order of its own, and is the host's.
#include "include/nf4_encode.h"
#include "include/operand.cuh"
#include "include/quant_tables.cuh"

// scales[b] = largest magnitude of weights 64 b .. 64 b + 63 of w [rows, cols], f32, bf16 or f16;
// magnitudes order as their bits do, so a NaN is above all numbers. A warp has a block. Overwrites.
extern "C" __global__ void __launch_bounds__(NF4_ENCODE_THREADS)
    nf4_scales(float* scales, const void* w, Nf4EncodeParams p) {
    const int64_t n = p.rows * p.cols;
    const int64_t block = int64_t(blockIdx.x) * (NF4_ENCODE_THREADS / WARP) + warp_id();
    const int64_t first = block * QUANT_NF4_BLOCK;
    if (first >= n) return;
    const Operand from = {w, p.type, false};
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < QUANT_NF4_BLOCK / WARP; ++i) {
        const int64_t at = first + i * WARP + lane_id();
        if (at < n) most = max(most, __float_as_uint(fabsf(read_one(from, size_t(at)))));
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        most = max(most, __shfl_xor_sync(FULL_MASK, most, distance));
    }
    if (lane_id() == 0) scales[block] = __uint_as_float(most);
}

namespace {

struct Midpoints {
    float v[15];
};

constexpr Midpoints midpoints() {
    Midpoints m = {};
    const QuantTables codes = quant_tables();
    for (int i = 0; i < 15; ++i) m.v[i] = (codes.v[i] + codes.v[i + 1]) / 2.f;
    return m;
}

static __constant__ const Midpoints MIDPOINTS = midpoints();

__device__ __forceinline__ uint32_t nearest(float w, float scale) {
    // The rounded product with the reciprocal, not a quotient; of a scale of zero, or one so small
    // that its reciprocal overflows, all products are zero.
    const float reciprocal = __fdiv_rn(1.f, scale);
    const float x = __fmul_rn(w, isinf(reciprocal) ? 0.f : reciprocal);
    uint32_t code = 0;
#pragma unroll
    for (int i = 0; i < 15; ++i) code += x > MIDPOINTS.v[i];
    return code;
}

}  // namespace

// The plane of codes of quant_blocks.h, [rows, 16 bytes a chunk of 32]: what is behind a row's last
// weight is the code of zero. w as above, and its scales. A thread has a byte. Overwrites.
extern "C" __global__ void __launch_bounds__(NF4_ENCODE_THREADS)
    nf4_codes(uint8_t* codes, const void* w, const float* scales, Nf4EncodeParams p) {
    constexpr uint32_t ZERO = 7;
    const int64_t of_row = int64_t(p.cols + QUANT_CHUNK - 1) / QUANT_CHUNK * 16;
    const int64_t i = int64_t(blockIdx.x) * NF4_ENCODE_THREADS + threadIdx.x, row = i / of_row;
    if (row >= p.rows) return;
    const int in_row = int(i % of_row), t = in_row % 16 / 4, pair = in_row % 4;
    const int col = in_row / 16 * QUANT_CHUNK + 8 * pair + 2 * t;
    const Operand from = {w, p.type, false};
    uint32_t two[2] = {ZERO, ZERO};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const int64_t at = row * p.cols + col + e;
        if (col + e < p.cols) {
            two[e] = nearest(read_one(from, size_t(at)), scales[at / QUANT_NF4_BLOCK]);
        }
    }
    codes[i] = uint8_t(two[0] | two[1] << 4);
}

PUNA_KERNEL(nf4_scales)
PUNA_KERNEL(nf4_codes)
