// Rows around the products of quant_*.cu: rows of a quantised table by number, and rows of x as the
// tensor cores' kernels want them.
#include "include/operand.cuh"
#include "include/quant.cuh"

namespace {

// out[i] = the row ids[i] of W; out: [n, cols], ids: [n]. f32 as the CPU decodes it, or rounded to
// bf16. Overwrites. A thread has a word's 8 weights, in pairs; the first side of the grid is i. A
// number that is no row's gives a row of NaN, as in embedding.cu.
template <class O>
__device__ __forceinline__ void gather(O* out, const QuantView& w, const uint32_t* ids,
                                       const QuantParams& p) {
    DYN_SMEM(smem);
    float* const tables = reinterpret_cast<float*>(smem);
    fill_tables<16 + 256>(tables);
    __syncthreads();
    const int word = int(blockIdx.y * QUANT_ROW_THREADS + threadIdx.x), chunk = word / 4;
    const int t = word % 4;
    if (chunk * QUANT_CHUNK >= p.cols) return;
    const uint32_t id = ids[blockIdx.x];
    float v[8];
    if (id < uint32_t(p.rows)) {
        with_format(p.format, [&](auto f) {
            using F = decltype(f);
            const auto raw = load_codes<F, 1>(w, p, id, chunk, t);
            const Scales s =
                decode_scales<F>(load_scales<F>(w, p, id, chunk), w.offset, tables);
            decode_word<F>(v, raw.low, raw.high[0], chunk, t, s, tables);
        });
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = __uint_as_float(0x7fc00000u);
    }
    O* const to = out + size_t(blockIdx.x) * p.cols;
    const bool pairs = p.product.flags & MATMUL_PAIRS;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const int col = chunk * QUANT_CHUNK + 4 * i + 2 * t;
        if (pairs && col < p.cols) {
            const Pack<O, 2> pack = {from_f32<O>(v[i]), from_f32<O>(v[i + 1])};
            pack.store(to + col);
        } else {
            if (col < p.cols) to[col] = from_f32<O>(v[i]);
            if (col + 1 < p.cols) to[col + 1] = from_f32<O>(v[i + 1]);
        }
    }
}

}  // namespace

#define QUANT_GATHER(name, O)                                                                      \
    extern "C" __global__ void __launch_bounds__(QUANT_ROW_THREADS)                                \
        name(O* out, const uint8_t* codes, const uint8_t* high, const uint8_t* scales,             \
             const uint8_t* supers, const uint32_t* ids, QuantParams p) {                          \
        gather(out, {codes, high, scales, supers, p.offset}, ids, p);                              \
    }                                                                                              \
    PUNA_KERNEL(name)

QUANT_GATHER(quant_gather_f32, float)
QUANT_GATHER(quant_gather_bf16, bf16)

// out[i, j] = x[i, j] rounded to bf16, zero for j >= cols; out: [rows, width], width a multiple of 8;
// x: [rows, cols], f32, bf16 or f16 of any alignment. Overwrites. What tensor cores take where x is
// not that already: beside a product with thousands of columns the copy costs little.
extern "C" __global__ void __launch_bounds__(QUANT_ROW_THREADS)
    round_rows(bf16* out, const void* x, RoundParams p) {
    const int per_row = p.width / READ;
    const int64_t i = int64_t(blockIdx.x) * QUANT_ROW_THREADS + threadIdx.x;
    const int64_t row = i / per_row, col = i % per_row * READ;
    if (row >= p.rows) return;
    const int64_t left = p.cols - col;
    float v[READ];
    const Operand from = {x, p.type, p.vectors != 0};
    read_chunk(v, from, left > 0 ? size_t(row) * p.cols + col : 0, left > 0 ? left : 0);
    round_chunk(v).store(reinterpret_cast<uint32_t*>(out + row * p.width + col));
}

PUNA_KERNEL(round_rows)
