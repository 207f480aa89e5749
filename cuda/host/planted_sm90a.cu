// Kernels with one mistake each in the use of barriers in shared memory, for the test of the harness
// (tests/cuda_vs_cpu/harness.rs). Launched as those of planted.cu.

#include "../include/ptx_sm90a.cuh"

// ---- without a mistake ----

// out[i] = x[n - 1 - i]: one half of the threads copies, the other waits, twice in one place.
extern "C" __global__ void planted_phases(float* out, const float* x, unsigned n) {
    DYN_SMEM(raw);
    __shared__ uint64_t full, empty;
    float* const place = reinterpret_cast<float*>(raw);
    const unsigned half = n / 2, i = threadIdx.x % half;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, half);
        mbarrier_init(&empty, half);
        fence_proxy_async();
    }
    __syncthreads();
    for (uint32_t round = 0; round < 2; ++round) {
        if (threadIdx.x < half) {
            mbarrier_wait(&empty, round ^ 1);
            cp_async4(place + i, x + round * half + i);
            cp_async_commit();
            cp_async_wait<0>();
            fence_proxy_async();
            mbarrier_arrive(&full);
        } else {
            mbarrier_wait(&full, round);
            out[n - 1 - (round * half + i)] = place[i];
            mbarrier_arrive(&empty);
        }
    }
}

// Warps that take turns.
extern "C" __global__ void planted_turns(float* out, const float* x, unsigned n) {
    DYN_SMEM(raw);
    float* const place = reinterpret_cast<float*>(raw);
    if (threadIdx.x < 32) {
        place[threadIdx.x] = x[threadIdx.x];
        place[threadIdx.x + 32] = x[threadIdx.x + 32];
        named_arrive(1, 64);
    } else {
        named_sync(1, 64);
        out[threadIdx.x] = place[n - 1 - threadIdx.x];
        out[threadIdx.x - 32] = place[n - 1 - (threadIdx.x - 32)];
    }
}

// ---- with one ----

extern "C" __global__ void planted_no_arrival(float* out, const float* x, unsigned n) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, n);
    __syncthreads();
    if (threadIdx.x > 0) mbarrier_arrive(&full);
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_expected_bytes(float* out, const float* x, unsigned n) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, n);
    __syncthreads();
    mbarrier_arrive_expect(&full, 4);
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_arrivals(float* out, const float* x, unsigned n) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        // Bytes that are still to come keep the phase from ending.
        mbarrier_arrive_expect(&full, 4);
    }
    __syncthreads();
    if (threadIdx.x == n - 1) mbarrier_arrive(&full);
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_no_barrier_made(float* out, const float* x, unsigned) {
    __shared__ uint64_t full;
    mbarrier_wait(&full, 1);
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_no_fence(float* out, const float* x, unsigned n) {
    DYN_SMEM(raw);
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, n);
    __syncthreads();
    cp_async4(raw + 4 * threadIdx.x, x + threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    mbarrier_arrive(&full);
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void planted_no_turn(float* out, const float* x, unsigned) {
    if (threadIdx.x < 32) named_sync(1, 64);
    out[threadIdx.x] = x[threadIdx.x];
}

PUNA_KERNEL(planted_phases)
PUNA_KERNEL(planted_turns)
PUNA_KERNEL(planted_no_arrival)
PUNA_KERNEL(planted_expected_bytes)
PUNA_KERNEL(planted_arrivals)
PUNA_KERNEL(planted_no_barrier_made)
PUNA_KERNEL(planted_no_fence)
PUNA_KERNEL(planted_no_turn)
