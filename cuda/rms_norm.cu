// Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), forward and backward.
// Twin of cpu/src/rms_norm.rs.

#include "include/reduce.cuh"
#include "include/rms_norm.h"

// A thread takes chunks of 16 bytes, `RMS_NORM_THREADS` chunks apart, and the elements of a chunk in
// their order; loaded one by one where rows are not aligned, so both ways give the same bits.
template <class T>
__device__ __forceinline__ Pack16<T> load_chunk(const T* row, uint32_t at, uint32_t n,
                                                bool vectors) {
    if (vectors) return Pack16<T>::load(row + at);
    Pack16<T> chunk;
#pragma unroll
    for (uint32_t i = 0; i < PER_16_BYTES<T>; ++i) {
        chunk.v[i] = at + i < n ? row[at + i] : from_f32<T>(0.f);
    }
    return chunk;
}

template <class T>
__device__ __forceinline__ void store_chunk(T* row, uint32_t at, uint32_t n, bool vectors,
                                            const Pack16<T>& chunk) {
    if (vectors) return chunk.store(row + at);
#pragma unroll
    for (uint32_t i = 0; i < PER_16_BYTES<T>; ++i) {
        if (at + i < n) row[at + i] = chunk.v[i];
    }
}

// out = w * (x / sqrt(mean(x^2) + eps)) for every row.
// out, x [rows, dim] of T; w [dim] f32; sums f32; overwrites. One block a row.
template <class T>
__device__ __forceinline__ void rms_norm(T* out, const T* x, const float* w, RmsNormParams p) {
    constexpr uint32_t STEP = PER_16_BYTES<T>;
    const size_t row = size_t(blockIdx.x) * p.dim;
    const bool vectors = p.vectors != 0;
    const uint32_t first = threadIdx.x * STEP, stride = RMS_NORM_THREADS * STEP;
    float squares = 0.f;
    for (uint32_t at = first; at < p.dim; at += stride) {
        const Pack16<T> chunk = load_chunk(x + row, at, p.dim, vectors);
#pragma unroll
        for (uint32_t i = 0; i < STEP; ++i) {
            const float value = to_f32(chunk.v[i]);
            squares = fmaf(value, value, squares);
        }
    }
    const float mean = block_sum<RMS_NORM_THREADS>(squares) / float(p.dim);
    const float r = 1.f / sqrtf(mean + p.eps);
    for (uint32_t at = first; at < p.dim; at += stride) {
        Pack16<T> chunk = load_chunk(x + row, at, p.dim, vectors);
#pragma unroll
        for (uint32_t i = 0; i < STEP; ++i) {
            const float weight = at + i < p.dim ? w[at + i] : 0.f;
            chunk.v[i] = from_f32<T>(to_f32(chunk.v[i]) * r * weight);
        }
        store_chunk(out + row, at, p.dim, vectors, chunk);
    }
}

// N elements of a row from `at` on, beside as many of another type.
template <class T, int N> struct Lanes {
    T v[N];
};

template <int N, class T>
__device__ __forceinline__ Lanes<T, N> load_lanes(const T* row, uint32_t at, uint32_t dim,
                                                  bool vectors) {
    constexpr int STEP = PER_16_BYTES<T>;
    Lanes<T, N> lanes;
#pragma unroll
    for (int from = 0; from < N; from += STEP) {
        const Pack16<T> chunk = load_chunk(row, at + from, dim, vectors && at + from < dim);
#pragma unroll
        for (int i = 0; i < STEP; ++i) lanes.v[from + i] = chunk.v[i];
    }
    return lanes;
}

template <int N, class T>
__device__ __forceinline__ void store_lanes(T* row, uint32_t at, uint32_t dim, bool vectors,
                                            const Lanes<T, N>& lanes) {
    constexpr int STEP = PER_16_BYTES<T>;
#pragma unroll
    for (int from = 0; from < N; from += STEP) {
        Pack16<T> chunk;
#pragma unroll
        for (int i = 0; i < STEP; ++i) chunk.v[i] = lanes.v[from + i];
        store_chunk(row, at + from, dim, vectors && at + from < dim, chunk);
    }
}

// With r = 1 / sqrt(mean(x^2) + eps) and xhat = x r of a row:
// dx = r (w dout - xhat mean(w dout xhat)), overwritten or added to (dx_acc); rstd[row] = r, for
// rms_norm_dw, where it is not null.
// x [rows, dim] of T, dx and dout of D: T, or f32; w [dim], rstd [rows] f32; sums f32. One block a
// row.
template <class T, class D>
__device__ __forceinline__ void rms_norm_bwd(D* dx, float* rstd, const D* dout, const T* x,
                                             const float* w, RmsNormParams p) {
    constexpr uint32_t STEP = PER_16_BYTES<T>;
    const size_t row = size_t(blockIdx.x) * p.dim;
    const bool vectors = p.vectors != 0;
    const uint32_t first = threadIdx.x * STEP, stride = RMS_NORM_THREADS * STEP;
    float squares = 0.f, dot = 0.f;
    for (uint32_t at = first; at < p.dim; at += stride) {
        const Pack16<T> xs = load_chunk(x + row, at, p.dim, vectors);
        const Lanes<D, STEP> ds = load_lanes<STEP>(dout + row, at, p.dim, vectors);
#pragma unroll
        for (uint32_t i = 0; i < STEP; ++i) {
            const float value = to_f32(xs.v[i]);
            const float weight = at + i < p.dim ? w[at + i] : 0.f;
            squares = fmaf(value, value, squares);
            dot = fmaf(to_f32(ds.v[i]) * weight, value, dot);
        }
    }
    squares = block_sum<RMS_NORM_THREADS>(squares);
    dot = block_sum<RMS_NORM_THREADS>(dot);
    // No power of r above the first is formed, which for tiny rows would be large.
    const float r = 1.f / sqrtf(squares / float(p.dim) + p.eps);
    const float mean_dot = r * (dot / float(p.dim));
    if (rstd != nullptr && threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (uint32_t at = first; at < p.dim; at += stride) {
        const Pack16<T> xs = load_chunk(x + row, at, p.dim, vectors);
        const Lanes<D, STEP> ds = load_lanes<STEP>(dout + row, at, p.dim, vectors);
        Lanes<D, STEP> result = {};
        if (p.dx_acc != 0) result = load_lanes<STEP>(dx + row, at, p.dim, vectors);
#pragma unroll
        for (uint32_t i = 0; i < STEP; ++i) {
            const float weight = at + i < p.dim ? w[at + i] : 0.f;
            const float xhat = to_f32(xs.v[i]) * r;
            float d = r * (to_f32(ds.v[i]) * weight - xhat * mean_dot);
            if (p.dx_acc != 0) d += to_f32(result.v[i]);
            result.v[i] = from_f32<D>(d);
        }
        store_lanes<STEP>(dx + row, at, p.dim, vectors, result);
    }
}

// partials[b][col] = the sum of dout x rstd over the rows of block b of RMS_NORM_GRAD_ROWS, in order.
// partials [ceil(rows / GRAD_ROWS), dim] f32; dout, x [rows, dim] of D and T; rstd [rows]; overwrites.
template <class T, class D>
__device__ __forceinline__ void rms_norm_dw(float* partials, const D* dout, const T* x,
                                            const float* rstd, RmsNormParams p) {
    const uint32_t col = blockIdx.x * RMS_NORM_COLUMN_THREADS + threadIdx.x;
    if (col >= p.dim) return;
    const uint64_t first = uint64_t(blockIdx.y) * RMS_NORM_GRAD_ROWS;
    const uint64_t end = first + RMS_NORM_GRAD_ROWS < p.rows ? first + RMS_NORM_GRAD_ROWS : p.rows;
    float sum = 0.f;
    for (uint64_t row = first; row < end; ++row) {
        const size_t at = size_t(row) * p.dim + col;
        sum = fmaf(to_f32(dout[at]), to_f32(x[at]) * rstd[row], sum);
    }
    partials[size_t(blockIdx.y) * p.dim + col] = sum;
}

extern "C" __global__ void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm_f32(float* out, const float* x, const float* w, RmsNormParams p) {
    rms_norm(out, x, w, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm_bf16(bf16* out, const bf16* x, const float* w, RmsNormParams p) {
    rms_norm(out, x, w, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm_bwd_f32(float* dx, float* rstd, const float* dout, const float* x, const float* w,
                     RmsNormParams p) {
    rms_norm_bwd(dx, rstd, dout, x, w, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm_bwd_bf16(bf16* dx, float* rstd, const bf16* dout, const bf16* x, const float* w,
                      RmsNormParams p) {
    rms_norm_bwd(dx, rstd, dout, x, w, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm_bwd_f32_bf16(float* dx, float* rstd, const float* dout, const bf16* x, const float* w,
                          RmsNormParams p) {
    rms_norm_bwd(dx, rstd, dout, x, w, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_COLUMN_THREADS)
    rms_norm_dw_f32(float* partials, const float* dout, const float* x, const float* rstd,
                    RmsNormParams p) {
    rms_norm_dw(partials, dout, x, rstd, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_COLUMN_THREADS)
    rms_norm_dw_bf16(float* partials, const bf16* dout, const bf16* x, const float* rstd,
                     RmsNormParams p) {
    rms_norm_dw(partials, dout, x, rstd, p);
}
extern "C" __global__ void __launch_bounds__(RMS_NORM_COLUMN_THREADS)
    rms_norm_dw_f32_bf16(float* partials, const float* dout, const bf16* x, const float* rstd,
                         RmsNormParams p) {
    rms_norm_dw(partials, dout, x, rstd, p);
}

// dw += the partial sums, block after block.
// dw [dim], partials [ceil(rows / GRAD_ROWS), dim], f32; adds.
extern "C" __global__ void __launch_bounds__(RMS_NORM_COLUMN_THREADS)
    rms_norm_dw_acc(float* dw, const float* partials, RmsNormParams p) {
    const uint32_t col = blockIdx.x * RMS_NORM_COLUMN_THREADS + threadIdx.x;
    if (col >= p.dim) return;
    const uint64_t blocks = (p.rows + RMS_NORM_GRAD_ROWS - 1) / RMS_NORM_GRAD_ROWS;
    float sum = dw[col];
    for (uint64_t b = 0; b < blocks; ++b) sum += partials[size_t(b) * p.dim + col];
    dw[col] = sum;
}

PUNA_KERNEL(rms_norm_f32)
PUNA_KERNEL(rms_norm_bf16)
PUNA_KERNEL(rms_norm_bwd_f32)
PUNA_KERNEL(rms_norm_bwd_bf16)
PUNA_KERNEL(rms_norm_bwd_f32_bf16)
PUNA_KERNEL(rms_norm_dw_f32)
PUNA_KERNEL(rms_norm_dw_bf16)
PUNA_KERNEL(rms_norm_dw_f32_bf16)
PUNA_KERNEL(rms_norm_dw_acc)
