// Kernels with one mistake each, for the test of the harness itself (tests/cuda_vs_cpu/harness.rs),
// which says what each run has to find. Launched with n threads a block and n floats in x, out.

#include "../include/ptx.cuh"
#include "../include/reduce.cuh"

constexpr unsigned MOST = 128;

// ---- without a mistake: none of these may be reported ----

// out[i] = x[n - 1 - i], through shared memory, twice.
extern "C" __global__ void planted_nothing(float* out, const float* x, unsigned n) {
    __shared__ float tile[MOST];
    const unsigned i = threadIdx.x;
    for (int round = 0; round < 2; ++round) {
        tile[i] = x[i];
        __syncthreads();
        out[i] = tile[n - 1 - i];
        __syncthreads();
    }
}

// The same through asynchronous copies, a warp's own part of shared memory, and a block's sum.
extern "C" __global__ void planted_nothing_either(float* out, const float* x, unsigned n) {
    DYN_SMEM(raw);
    float* tile = reinterpret_cast<float*>(raw);
    const unsigned i = threadIdx.x;
    cp_async4(tile + i, x + i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const float reversed = tile[n - 1 - i];
    const float sum = block_sum<64>(reversed) + block_sum<64>(-reversed);
    // Lanes read what other lanes of their warp wrote, after a __syncwarp.
    tile[i] = reversed;
    __syncwarp();
    const float mirrored = tile[i ^ 31];
    __syncwarp();
    tile[i ^ 31] = mirrored;
    __syncwarp();
    out[i] = tile[i] + sum;
}

// ---- synchronisation ----

extern "C" __global__ void planted_no_barrier(float* out, const float* x, unsigned n) {
    __shared__ float tile[MOST];
    const unsigned i = threadIdx.x;
    tile[i] = x[i];
    out[i] = tile[n - 1 - i];
}

extern "C" __global__ void planted_no_second_barrier(float* out, const float* x, unsigned n) {
    __shared__ float tile[MOST];
    const unsigned i = threadIdx.x;
    float sum = 0.f;
    for (unsigned round = 0; round < 2; ++round) {
        tile[i] = x[i] * float(round);
        __syncthreads();
        sum += tile[n - 1 - i];
    }
    out[i] = sum;
}

// A shuffle lets lanes meet, but orders no memory.
extern "C" __global__ void planted_shuffle_as_barrier(float* out, const float* x, unsigned) {
    __shared__ float tile[MOST];
    const unsigned i = threadIdx.x;
    tile[i] = x[i];
    __shfl_xor_sync(FULL_MASK, 0, 1);
    out[i] = tile[i ^ 1];
}

extern "C" __global__ void planted_no_wait(float* out, const float* x, unsigned n) {
    DYN_SMEM(raw);
    float* tile = reinterpret_cast<float*>(raw);
    const unsigned i = threadIdx.x;
    cp_async4(tile + i, x + i);
    cp_async_commit();
    __syncthreads();
    out[i] = tile[n - 1 - i];
}

extern "C" __global__ void planted_branch_barrier(float* out, const float* x, unsigned n) {
    if (threadIdx.x < n / 2) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_two_barriers(float* out, const float* x, unsigned n) {
    if (threadIdx.x < n / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_branch_shuffle(float* out, const float* x, unsigned) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) value = __shfl_xor_sync(FULL_MASK, value, 1);
    out[threadIdx.x] = value;
}

extern "C" __global__ void planted_wrong_mask(float* out, const float* x, unsigned) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], 1);
}

extern "C" __global__ void planted_ended_lanes(float* out, const float* x, unsigned) {
    if (threadIdx.x % 32 >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(FULL_MASK, x[threadIdx.x], 1);
}

// Two blocks, which nothing orders.
extern "C" __global__ void planted_two_blocks(float* out, const float* x, unsigned) {
    if (threadIdx.x == 0) out[0] = x[blockIdx.x];
}

// ---- addresses ----

extern "C" __global__ void planted_reads_outside(float* out, const float* x, unsigned) {
    out[threadIdx.x] = x[threadIdx.x + 1];
}

extern "C" __global__ void planted_writes_outside(float* out, const float* x, unsigned) {
    out[threadIdx.x + 1] = x[threadIdx.x];
}

extern "C" __global__ void planted_index_outside(float* out, const float* x, unsigned) {
    __shared__ float tile[MOST], other[MOST];
    const unsigned i = threadIdx.x;
    other[i] = tile[i] = 0.f;
    tile[i + MOST - 8] = x[i];
    __syncthreads();
    out[i] = tile[i] + other[i];
}

extern "C" __global__ void planted_dynamic_outside(float* out, const float* x, unsigned) {
    DYN_SMEM(raw);
    float* tile = reinterpret_cast<float*>(raw);
    tile[threadIdx.x + 1] = x[threadIdx.x];
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_misaligned(float* out, const float* x, unsigned) {
    if (threadIdx.x == 0) out[0] = Pack<float, 4>::load(x + 1).v[0];
}

extern "C" __global__ void planted_misaligned_cast(float* out, const float* x, unsigned) {
    if (threadIdx.x == 0) out[0] = reinterpret_cast<const float4*>(x + 1)->x;
}

extern "C" __global__ void planted_misaligned_copy(float* out, const float* x, unsigned) {
    DYN_SMEM(raw);
    cp_async16(raw, x + 1);
    out[threadIdx.x] = 0.f;
}

// ---- values ----

extern "C" __global__ void planted_uninitialised(float* out, const float* x, unsigned) {
    __shared__ float tile[MOST];
    if (threadIdx.x % 2 == 0) tile[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void planted_overflow(float* out, const float* x, unsigned n) {
    const int rows = int(n) << 16, cols = int(n) << 16;
    out[threadIdx.x] = x[rows * cols > 0 ? 1 : 0];
}

PUNA_KERNEL(planted_nothing)
PUNA_KERNEL(planted_nothing_either)
PUNA_KERNEL(planted_no_barrier)
PUNA_KERNEL(planted_no_second_barrier)
PUNA_KERNEL(planted_shuffle_as_barrier)
PUNA_KERNEL(planted_no_wait)
PUNA_KERNEL(planted_branch_barrier)
PUNA_KERNEL(planted_two_barriers)
PUNA_KERNEL(planted_branch_shuffle)
PUNA_KERNEL(planted_wrong_mask)
PUNA_KERNEL(planted_ended_lanes)
PUNA_KERNEL(planted_two_blocks)
PUNA_KERNEL(planted_reads_outside)
PUNA_KERNEL(planted_writes_outside)
PUNA_KERNEL(planted_index_outside)
PUNA_KERNEL(planted_dynamic_outside)
PUNA_KERNEL(planted_misaligned)
PUNA_KERNEL(planted_misaligned_cast)
PUNA_KERNEL(planted_misaligned_copy)
PUNA_KERNEL(planted_uninitialised)
PUNA_KERNEL(planted_overflow)
