// Products of 1 to 16 rows with weights in unrounded single precision, bound by memory for few
// rows: out = alpha x W^T + bias, or out += alpha x W^T + bias.
//
// out [m, n], f32 or bf16 (rounded once); x [m, k], f32, bf16 or f16; weights [n, k], f32, bf16 or
// f16; all read as f32; bias [n], f32 or bf16, or none. f32 sums. Overwrites, or adds with
// MATMUL_ACC. Any k and alignment; 16 bytes are read at a time where rows allow it.
//
// Order of summation: chunk c of MATVEC_CHUNK inputs belongs to thread c % MATVEC_THREADS, which
// adds its inputs in order by fused multiply-adds; then the 32 threads of a warp (warp_sum), then
// the warps in order. The order is a function of k alone, so a row has the same bits alone and
// among up to 16. It is not the order of matmul_f32.cu, which takes over above 16 rows.
#include "include/matmul_tile.cuh"
#include "include/operand.cuh"
#include "include/reduce.cuh"

namespace {

static_assert(READ == MATVEC_CHUNK, "a chunk is read at once");

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return to_f32(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

// A chunk as it lies in memory: converted when it is used, so that the loads of all rows and
// columns are under way together.
template <class T> struct RawChunk {
    static constexpr int PARTS = READ / PER_16_BYTES<T>;
    Pack16<T> part[PARTS];

    __device__ __forceinline__ void load(const T* from) {
#pragma unroll
        for (int i = 0; i < PARTS; ++i) part[i] = Pack16<T>::load(from + i * PER_16_BYTES<T>);
    }
    __device__ __forceinline__ float get(int i) const {
        return widen(part[i / PER_16_BYTES<T>].v[i % PER_16_BYTES<T>]);
    }
};

// This thread's sums, chunks being whole and aligned. Rows behind the last read the last again, and
// columns behind the last likewise: no branch stands between loads, and nobody stores their sums.
template <class X, class W, int ROWS, int COLS>
__device__ __forceinline__ void sum_vectors(float (&sum)[ROWS][COLS], const X* x, const W* w,
                                            int64_t col0, const MatmulParams& p) {
    // Rows whose chunks are in registers together.
    constexpr int GROUP = ROWS < 4 ? ROWS : ROWS == 4 ? 4 : 2;
    const int64_t k = p.k;
#pragma unroll(ROWS <= 4 ? 2 : 1)
    for (int64_t at = int64_t(threadIdx.x) * READ; at < k; at += MATVEC_THREADS * READ) {
        RawChunk<W> ws[COLS];
#pragma unroll
        for (int c = 0; c < COLS; ++c) ws[c].load(w + min(col0 + c, int64_t(p.n) - 1) * k + at);
#pragma unroll
        for (int r0 = 0; r0 < ROWS; r0 += GROUP) {
            RawChunk<X> xs[GROUP];
#pragma unroll
            for (int r = 0; r < GROUP; ++r) xs[r].load(x + min(r0 + r, p.m - 1) * k + at);
#pragma unroll
            for (int r = 0; r < GROUP; ++r) {
#pragma unroll
                for (int c = 0; c < COLS; ++c) {
                    float& to = sum[r0 + r][c];
#pragma unroll
                    for (int i = 0; i < READ; ++i) to = fmaf(xs[r].get(i), ws[c].get(i), to);
                }
            }
        }
    }
}

// The same sums for any alignment.
template <int ROWS, int COLS>
__device__ __forceinline__ void sum_scalars(float (&sum)[ROWS][COLS], const Operand& x,
                                            const Operand& w, int64_t col0, const MatmulParams& p) {
    const int64_t k = p.k;
    for (int64_t at = int64_t(threadIdx.x) * READ; at < k; at += MATVEC_THREADS * READ) {
#pragma unroll 1
        for (int i = 0; i < READ && at + i < k; ++i) {
            float weight[COLS];
#pragma unroll
            for (int c = 0; c < COLS; ++c) {
                weight[c] = read_one(w, size_t(min(col0 + c, int64_t(p.n) - 1) * k + at + i));
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float value = read_one(x, size_t(min(r, p.m - 1) * k + at + i));
#pragma unroll
                for (int c = 0; c < COLS; ++c) sum[r][c] = fmaf(value, weight[c], sum[r][c]);
            }
        }
    }
}

// Weights of type W, numbered W_TYPE; ROWS of x at most, COLS columns of the output: sums in
// registers.
template <class W, uint32_t W_TYPE, int ROWS, int COLS>
__device__ __forceinline__ void matvec(void* out, const void* x, const void* w, const void* bias,
                                       const MatmulParams& p) {
    constexpr int WARPS = MATVEC_THREADS / WARP;
    __shared__ float of_warp[WARPS][ROWS * COLS];
    const int64_t col0 = int64_t(blockIdx.x) * COLS;
    constexpr uint32_t VECTORS = MATMUL_A_VECTORS | MATMUL_B_VECTORS;
    const bool vectors = (p.flags & VECTORS) == VECTORS;
    float sum[ROWS][COLS] = {};
    if (vectors && p.a_type == MATMUL_F32) {
        sum_vectors(sum, static_cast<const float*>(x), static_cast<const W*>(w), col0, p);
    } else if (vectors && p.a_type == MATMUL_BF16) {
        sum_vectors(sum, static_cast<const bf16*>(x), static_cast<const W*>(w), col0, p);
    } else {
        sum_scalars(sum, Operand{x, p.a_type, false}, Operand{w, W_TYPE, false}, col0, p);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < COLS; ++c) {
            const float total = warp_sum(sum[r][c]);
            if (lane_id() == 0) of_warp[warp_id()][r * COLS + c] = total;
        }
    }
    __syncthreads();
    // A thread has two neighbouring outputs.
    for (int i = int(threadIdx.x); i < p.m * (COLS / 2); i += MATVEC_THREADS) {
        const int row = i / (COLS / 2), c = i % (COLS / 2) * 2;
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            v[j] = of_warp[0][row * COLS + c + j];
#pragma unroll
            for (int warp = 1; warp < WARPS; ++warp) v[j] += of_warp[warp][row * COLS + c + j];
        }
        if (p.flags & MATMUL_OUT_BF16) {
            put_pair(static_cast<bf16*>(out), bias, p, row, int(col0) + c, v[0], v[1]);
        } else {
            put_pair(static_cast<float*>(out), bias, p, row, int(col0) + c, v[0], v[1]);
        }
    }
}

}  // namespace

// Twelve instances: three types of weights, the reads of which take the time; registers for 1, 4, 8
// or 16 rows.
#define MATVEC_INSTANCE(name, W, W_TYPE, ROWS, COLS)                                               \
    extern "C" __global__ void __launch_bounds__(MATVEC_THREADS)                                   \
        name(void* out, const void* x, const void* w, const void* bias, MatmulParams p) {          \
        matvec<W, W_TYPE, ROWS, COLS>(out, x, w, bias, p);                                         \
    }                                                                                              \
    PUNA_KERNEL(name)

MATVEC_INSTANCE(matvec_f32_1, float, MATMUL_F32, 1, MATVEC_COLS_1)
MATVEC_INSTANCE(matvec_f32_4, float, MATMUL_F32, 4, MATVEC_COLS_4)
MATVEC_INSTANCE(matvec_f32_8, float, MATMUL_F32, 8, MATVEC_COLS_8)
MATVEC_INSTANCE(matvec_f32_16, float, MATMUL_F32, 16, MATVEC_COLS_16)
MATVEC_INSTANCE(matvec_bf16_1, bf16, MATMUL_BF16, 1, MATVEC_COLS_1)
MATVEC_INSTANCE(matvec_bf16_4, bf16, MATMUL_BF16, 4, MATVEC_COLS_4)
MATVEC_INSTANCE(matvec_bf16_8, bf16, MATMUL_BF16, 8, MATVEC_COLS_8)
MATVEC_INSTANCE(matvec_bf16_16, bf16, MATMUL_BF16, 16, MATVEC_COLS_16)
MATVEC_INSTANCE(matvec_f16_1, __half, MATMUL_F16, 1, MATVEC_COLS_1)
MATVEC_INSTANCE(matvec_f16_4, __half, MATMUL_F16, 4, MATVEC_COLS_4)
MATVEC_INSTANCE(matvec_f16_8, __half, MATMUL_F16, 8, MATVEC_COLS_8)
MATVEC_INSTANCE(matvec_f16_16, __half, MATMUL_F16, 16, MATVEC_COLS_16)
