// out = alpha a W' + bias, or out += alpha a W' + bias, in single precision: W' is W^T, or W, of a
// quantised matrix of any format.
//
// out [m, n], f32 or bf16 (rounded once); a [m, k], f32, bf16 or f16 read as f32; W [n, k] (with
// MATMUL_B_TRANSPOSED) or [k, n] as quant_blocks.h has it, decoded to f32; bias [n], f32 or bf16, or
// none. f32 sums, in the order of include/simt_tile.cuh. Overwrites, or adds with MATMUL_ACC. Any size
// and alignment of a.
//
// For exactness, not speed: the format is looked at for every 8 weights, and their scales are decoded
// anew.
#include "include/quant.cuh"
#include "include/simt_tile.cuh"

namespace {

using Small = SimtShape<MATMUL_SMALL, MATMUL_SMALL, 8, 4>;
static_assert(READ == 8 && MATMUL_F32_BK % READ == 0, "an octet of a chunk is read at once");

// The weights as a factor.
struct QuantSource {
    QuantView w;
    const QuantParams& p;
    const float* tables;
    bool k_inner;
    __device__ __forceinline__ void read(float (&v)[READ], int64_t row, int64_t col, int cols,
                                         bool inside) const {
#pragma unroll
        for (int i = 0; i < READ; ++i) v[i] = 0.f;
        if (!inside) return;
        const int chunk = int(col) / QUANT_CHUNK, octet = int(col) % QUANT_CHUNK / READ;
        with_format(p.format, [&](auto f) {
            decode_octet<decltype(f)>(v, w, p, row, chunk, octet, tables);
        });
        // What fills the last chunk up decodes to zero, but times a scale.
#pragma unroll
        for (int i = 0; i < READ; ++i) {
            if (col + i >= cols) v[i] = 0.f;
        }
    }
};

__device__ __forceinline__ void f32_product(void* out, const void* a, const QuantView& view,
                                            const void* bias, const QuantParams& p) {
    DYN_SMEM(smem);
    float* const tables = reinterpret_cast<float*>(smem + MATMUL_F32_SMALL_BYTES);
    fill_tables<16 + 256>(tables);
    __syncthreads();
    const MatmulParams& product = p.product;
    const Operand from_a = {a, product.a_type, (product.flags & MATMUL_A_VECTORS) != 0};
    const QuantSource w = {view, p, tables, (product.flags & MATMUL_B_TRANSPOSED) != 0};
    simt_product<Small>(out, StoredSource{from_a, true}, w, bias, product);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(MATMUL_F32_SMALL_THREADS)
    quant_f32(void* out, const void* a, const uint8_t* codes, const uint8_t* high,
              const uint8_t* scales, const uint8_t* supers, const void* bias, QuantParams p) {
    f32_product(out, a, {codes, high, scales, supers, p.offset}, bias, p);
}

PUNA_KERNEL(quant_f32)
