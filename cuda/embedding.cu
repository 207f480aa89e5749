// Rows by number: look-up in a table, the table's gradient, and writing rows to their places. One
// block has (part of) one row. f32, bf16; tables f16 too. Sums are f32.

#include <cuda_fp16.h>

#include "include/elements.cuh"
#include "include/embedding.h"

using f16 = __half;
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }

namespace {

// out[i] = table[ids[i]]; out: [n, dim], table: [n_rows, dim], ids: [n]. Overwrites. A number that
// is no row's gives a row of NaN: what a device computed is not checked on its way.
template <class O, class T>
__device__ __forceinline__ void gather(O* out, const T* table, const uint32_t* ids,
                                       const EmbeddingParams& p) {
    const Lanes own = lanes_of<EMBEDDING_THREADS>(blockIdx.y, p.dim);
    if (own.count == 0) return;
    const uint32_t id = ids[blockIdx.x];
    float x[LANES];
    if (id < p.n_rows) {
        load_lanes(x, table + size_t(id) * p.dim + own.at, own.count, p.wide);
    } else {
#pragma unroll
        for (int i = 0; i < LANES; ++i) x[i] = __uint_as_float(0x7fc00000u);
    }
    store_lanes(out + size_t(blockIdx.x) * p.dim + own.at, x, own.count, p.wide);
}

// out[ids[i]] = x[i]; out: [n_rows, dim], x: [n, dim], ids: [n] distinct. Other rows stay; numbers
// that are no row's are passed over.
template <class T>
__device__ __forceinline__ void scatter_rows(T* out, const T* x, const uint32_t* ids,
                                             const EmbeddingParams& p) {
    const Lanes own = lanes_of<EMBEDDING_THREADS>(blockIdx.y, p.dim);
    const uint32_t id = ids[blockIdx.x];
    if (own.count == 0 || id >= p.n_rows) return;
    float a[LANES];
    load_lanes(a, x + size_t(blockIdx.x) * p.dim + own.at, own.count, p.wide);
    store_lanes(out + size_t(id) * p.dim + own.at, a, own.count, p.wide);
}

// dtable[ids[i]] += dout[i] for each i in order; dtable: [n_rows, dim] f32, dout: [n, dim].
// The launcher has sorted the positions i by id, keeping their order within one: block g adds, one
// after the other, the rows order[starts[g]..starts[g + 1]] of dout to row rows[g] of the table. So
// each element is one chain of additions, the CPU's, and no two blocks meet in a row.
template <class G>
__device__ __forceinline__ void embedding_bwd_acc(float* dtable, const G* dout,
                                                  const uint32_t* rows, const uint32_t* starts,
                                                  const uint32_t* order,
                                                  const EmbeddingParams& p) {
    const Lanes own = lanes_of<EMBEDDING_THREADS>(blockIdx.y, p.dim);
    const uint32_t row = rows[blockIdx.x];
    if (own.count == 0 || row >= p.n_rows) return;
    float* const to = dtable + size_t(row) * p.dim + own.at;
    float sum[LANES];
    load_lanes(sum, to, own.count, p.wide);
    const uint32_t end = starts[blockIdx.x + 1];
#pragma unroll 4
    for (uint32_t k = starts[blockIdx.x]; k < end; ++k) {
        float x[LANES];
        load_lanes(x, dout + size_t(order[k]) * p.dim + own.at, own.count, p.wide);
#pragma unroll
        for (int i = 0; i < LANES; ++i) sum[i] += x[i];
    }
    store_lanes(to, sum, own.count, p.wide);
}

}  // namespace

// Names: the output's type, then the table's.
#define GATHER(name, O, T)                                                                     \
    extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS)                            \
        name(O* out, const T* table, const uint32_t* ids, EmbeddingParams p) {                 \
        gather(out, table, ids, p);                                                            \
    }                                                                                          \
    PUNA_KERNEL(name)

GATHER(gather_f32_f32, float, float)
GATHER(gather_f32_bf16, float, bf16)
GATHER(gather_f32_f16, float, f16)
GATHER(gather_bf16_f32, bf16, float)
GATHER(gather_bf16_bf16, bf16, bf16)
GATHER(gather_bf16_f16, bf16, f16)

#define SCATTER_ROWS(name, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS)                            \
        name(T* out, const T* x, const uint32_t* ids, EmbeddingParams p) {                     \
        scatter_rows(out, x, ids, p);                                                          \
    }                                                                                          \
    PUNA_KERNEL(name)

SCATTER_ROWS(scatter_rows_f32, float)
SCATTER_ROWS(scatter_rows_bf16, bf16)

#define EMBEDDING_BWD(name, G)                                                                 \
    extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS)                            \
        name(float* dtable, const G* dout, const uint32_t* rows, const uint32_t* starts,       \
             const uint32_t* order, EmbeddingParams p) {                                       \
        embedding_bwd_acc(dtable, dout, rows, starts, order, p);                               \
    }                                                                                          \
    PUNA_KERNEL(name)

EMBEDDING_BWD(embedding_bwd_acc_f32, float)
EMBEDDING_BWD(embedding_bwd_acc_bf16, bf16)
