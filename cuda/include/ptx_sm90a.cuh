// PTX of compute capability 9.0 alone: products of warp groups, bulk copies, barriers in shared
// memory. Kernels that use it have files named *_sm90a.cu, which no other target compiles. As in
// ptx.cuh each instruction stands here twice, for nvcc and, with its meaning, for the harness
// (cuda/host/hopper.h). Source: PTX ISA, "mbarrier", "cp.async.bulk.tensor", "Async Proxy",
// "setmaxnreg", "wgmma", "Matrix Descriptor Format".
#pragma once

#include "ptx.cuh"
#include "tensor_map.h"

// A warp group: four warps, the first of which is a multiple of four.
constexpr int GROUP = 128;

#ifdef __CUDACC__

// A barrier in shared memory for so many arrivals a phase. Phases follow each other; a phase ends
// when all have arrived and, if bytes were announced, as many have been copied.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(barrier)), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(barrier)) : "memory");
}

// Arrives, and announces bytes that bulk copies bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Until the phase of this parity has ended; phases are counted from 0, and the one before the first
// counts as ended.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t done = 0;
    while (!done) {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(done)
            : "r"(smem_u32(barrier)), "r"(parity)
            : "memory");
    }
}

// What this thread wrote to shared memory (barriers that it made, and what it copied by cp.async,
// too) is seen by bulk copies and by the tensor cores' own reads, by whoever starts them after a
// barrier.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Brings a tensor map near, before the first copy asks for it.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One thread copies a box of the map's size, the one that begins at [row, col] of the matrix, to
// shared memory; its bytes are counted at the barrier. What lies outside of the matrix becomes zero,
// and counts too. Rows of 64 bf16, permuted as `swizzled<64>` does; `to` is a multiple of 1024.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, int row, int col,
                                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(smem_u32(to)),
        "l"(&map), "r"(col), "r"(row), "r"(smem_u32(barrier))
        : "memory");
}

// Barrier `id` (1 to 15; __syncthreads is 0) among so many threads, whole warps: to arrive and wait,
// or to arrive only.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers a thread that a warp group gives up, or gets, while the kernel runs.
template <int N> __device__ __forceinline__ void registers_down_to() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_up_to() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Before products that use registers which other instructions wrote. Products on the same sums
// follow each other without.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// The products that were started since the last commit become one group.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most N groups of this warp's products are under way.
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The compiler does not know that a product goes on writing its sums until it is waited for: this
// keeps what else is done with them on the side of the wait on which it was written.
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Names of operands 0 to 9 after the digits `tens`, and lists of 32, 64 and 128.
#define PUNA_TEN(tens)                                                                             \
    "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens        \
    "6, %" #tens "7, %" #tens "8, %" #tens "9, "
#define PUNA_30 PUNA_TEN() PUNA_TEN(1) PUNA_TEN(2)
#define PUNA_60 PUNA_30 PUNA_TEN(3) PUNA_TEN(4) PUNA_TEN(5)
#define PUNA_120                                                                                   \
    PUNA_60 PUNA_TEN(6) PUNA_TEN(7) PUNA_TEN(8) PUNA_TEN(9) PUNA_TEN(10) PUNA_TEN(11)
#define PUNA_NAMES_32 PUNA_30 "%30, %31"
#define PUNA_NAMES_64 PUNA_60 "%60, %61, %62, %63"
#define PUNA_NAMES_128                                                                             \
    PUNA_120 "%120, %121, %122, %123, %124, %125, %126, %127"

// The operands themselves.
#define PUNA_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PUNA_16(d, i) PUNA_4(d, i), PUNA_4(d, i + 4), PUNA_4(d, i + 8), PUNA_4(d, i + 12)
#define PUNA_SUMS_32(d, i) PUNA_16(d, i), PUNA_16(d, i + 16)
#define PUNA_SUMS_64(d, i) PUNA_SUMS_32(d, i), PUNA_SUMS_32(d, i + 32)
#define PUNA_SUMS_128(d, i) PUNA_SUMS_64(d, i), PUNA_SUMS_64(d, i + 64)

// a from shared memory: operands behind the sums are both descriptors, whether to add, and how the
// factors lie.
#define PUNA_WGMMA(n, sums, a, b, adds, ta, tb)                                                    \
    asm volatile("{\n"                                                                             \
                 ".reg .pred p;\n"                                                                 \
                 "setp.ne.b32 p, %" #adds ", 0;\n"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PUNA_NAMES_##sums    \
                 "}, %" #a ", %" #b ", p, 1, 1, %" #ta ", %" #tb ";\n"                             \
                 "}"                                                                               \
                 : PUNA_SUMS_##sums(d, 0)                                                          \
                 : "l"(a_tile), "l"(b_tile), "r"(int(add)), "n"(int(TA)), "n"(int(TB)))

// a from registers.
#define PUNA_WGMMA_REGISTERS(n, sums, a0, a1, a2, a3, b, adds, tb)                                 \
    asm volatile("{\n"                                                                             \
                 ".reg .pred p;\n"                                                                 \
                 "setp.ne.b32 p, %" #adds ", 0;\n"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PUNA_NAMES_##sums    \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, %" #tb ";\n"      \
                 "}"                                                                               \
                 : PUNA_SUMS_##sums(d, 0)                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile), "r"(int(add)),         \
                   "n"(int(TB)))

// Starts d = a b, or d += a b where `add`: a [64, 16], b [16, N], bf16; f32 sums. Warp w of the
// group has rows 16 w.. of d; register 4 j + i of a lane is element i of an mma accumulator
// (mma.cuh) for columns 8 j... The factors are named by descriptors (wgmma.cuh); TA, TB: they lie
// with rows, or columns, running along memory instead of inputs.
template <int N, bool TA, bool TB>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile,
                                      bool add) {
    static_assert(N == 64 || N == 128 || N == 256, "the widths in use");
    if constexpr (N == 64) {
        PUNA_WGMMA(64, 32, 32, 33, 34, 35, 36);
    } else if constexpr (N == 128) {
        PUNA_WGMMA(128, 64, 64, 65, 66, 67, 68);
    } else {
        PUNA_WGMMA(256, 128, 128, 129, 130, 131, 132);
    }
}

// The same with a in registers: each warp brings its 16 rows as mma's fragment A.
template <int N, bool TB>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile,
                                      bool add) {
    static_assert(N == 64 || N == 128, "the widths in use");
    if constexpr (N == 64) {
        PUNA_WGMMA_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37, 38);
    } else {
        PUNA_WGMMA_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69, 70);
    }
}

#else

inline uint32_t smem_u32(const void* p) { return puna_host::shared_window(p); }
inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals PUNA_AT) {
    puna_host::mbarrier_init(barrier, arrivals, file, line);
}
inline void mbarrier_arrive(uint64_t* barrier PUNA_AT) {
    puna_host::mbarrier_arrive(barrier, 0, file, line);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes PUNA_AT) {
    puna_host::mbarrier_arrive(barrier, bytes, file, line);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity PUNA_AT) {
    puna_host::mbarrier_wait(barrier, parity, file, line);
}
inline void fence_proxy_async() { puna_host::fence_proxy_async(); }
inline void prefetch_map(const TensorMap&) {}
inline void copy_box(void* to, const TensorMap& map, int row, int col, uint64_t* barrier PUNA_AT) {
    puna_host::copy_box(to, map.opaque, row, col, barrier, file, line);
}
inline void named_sync(int id, int threads PUNA_AT) {
    puna_host::named_barrier(id, threads, true, file, line);
}
inline void named_arrive(int id, int threads PUNA_AT) {
    puna_host::named_barrier(id, threads, false, file, line);
}
// Registers are the compiler's own here.
template <int N> inline void registers_down_to() {}
template <int N> inline void registers_up_to() {}
inline void wgmma_fence(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    puna_host::wgmma_fence(file, line);
}
inline void wgmma_commit(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    puna_host::wgmma_commit(file, line);
}
template <int N>
inline void wgmma_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    puna_host::wgmma_wait(N, file, line);
}
template <int N> inline void hold(float (&)[N]) {}
template <int N, bool TA, bool TB>
inline void wgmma(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile, bool add PUNA_AT) {
    puna_host::wgmma({d, N, nullptr, a_tile, b_tile, TA, TB, add}, file, line);
}
template <int N, bool TB>
inline void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile, bool add PUNA_AT) {
    puna_host::wgmma({d, N, a, 0, b_tile, false, TB, add}, file, line);
}

#endif
