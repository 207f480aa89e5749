// Every PTX instruction that the project writes itself, one function each, twice: the instruction
// under nvcc, its meaning under the host harness (cuda/host/tensor_core.h). sm_80 is enough for all.
// Source: PTX ISA, "cp.async", "ldmatrix", "Matrix Fragments for mma.m16n8k16", "ex2".
#pragma once

#include "dtype.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t smem_u32(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

// ldmatrix: 8x8 matrices of 16-bit elements from shared memory. Lane l hands in the address of row
// l % 8 of matrix l / 8, 16 bytes each and 16-byte aligned (x2 uses lanes 0 to 15). Register i of
// lane l then holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i; transposed, rows
// 2 (l % 4) and 2 (l % 4) + 1 of column l / 4. The whole warp calls.

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(smem))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(smem))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(smem))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(smem))
                 : "memory");
}

// d += a b with a [16, 16], b [16, 8], d [16, 8]; bf16 factors, f32 sums; the whole warp calls.
// Which lane holds which element: cuda/include/mma.cuh.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of f16 factors.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// cp.async: a copy from global to shared memory that lands by the wait for its group. Both
// addresses are multiples of the size. `.cg` (16 bytes only) passes by the first-level cache.

__device__ __forceinline__ void cp_async16(void* smem, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_u32(smem)), "l"(global)
                 : "memory");
}

// The first `bytes` (0 to 16) from `global`, zeroes after them; no byte behind them is read.
__device__ __forceinline__ void cp_async16_part(void* smem, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(smem)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async8_part(void* smem, const void* global, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_u32(smem)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async4_part(void* smem, const void* global, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(smem)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async8(void* smem, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(smem_u32(smem)), "l"(global)
                 : "memory");
}

__device__ __forceinline__ void cp_async4(void* smem, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_u32(smem)), "l"(global)
                 : "memory");
}

// The copies that this thread issued since its last commit become one group.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of this thread's groups are under way. Other threads see the data after a
// barrier that follows the wait.
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// x, of which the compiler knows nothing: what is computed from it inside a loop stays there instead
// of taking registers all the time.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// 2^x, subnormal results flushed to zero; at most 2 ulp off.
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

inline void ldmatrix_x4(uint32_t (&r)[4], const void* smem PUNA_AT) {
    puna_host::ldmatrix<4, false>(r, smem, file, line);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* smem PUNA_AT) {
    puna_host::ldmatrix<2, false>(r, smem, file, line);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem PUNA_AT) {
    puna_host::ldmatrix<4, true>(r, smem, file, line);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* smem PUNA_AT) {
    puna_host::ldmatrix<2, true>(r, smem, file, line);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] PUNA_AT) {
    puna_host::mma_m16n8k16_bf16(d, a, b, file, line);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] PUNA_AT) {
    puna_host::mma_m16n8k16_f16(d, a, b, file, line);
}
inline void cp_async16(void* smem, const void* global PUNA_AT) {
    puna_host::cp_async(smem, global, 16, 16, file, line);
}
inline void cp_async16_part(void* smem, const void* global, int bytes PUNA_AT) {
    puna_host::cp_async(smem, global, 16, bytes, file, line);
}
inline void cp_async8_part(void* smem, const void* global, int bytes PUNA_AT) {
    puna_host::cp_async(smem, global, 8, bytes, file, line);
}
inline void cp_async4_part(void* smem, const void* global, int bytes PUNA_AT) {
    puna_host::cp_async(smem, global, 4, bytes, file, line);
}
inline void cp_async8(void* smem, const void* global PUNA_AT) {
    puna_host::cp_async(smem, global, 8, 8, file, line);
}
inline void cp_async4(void* smem, const void* global PUNA_AT) {
    puna_host::cp_async(smem, global, 4, 4, file, line);
}
inline void cp_async_commit() { puna_host::cp_async_commit(); }
template <int N> inline void cp_async_wait() { puna_host::cp_async_wait(N); }
inline int opaque(int x) { return x; }
inline float ex2(float x) { return puna_host::flush(exp2f(x)); }

#endif

// Sixteen zero bytes where `valid` is false; `global` is then not read but still has to be some
// aligned address.
__device__ __forceinline__ void cp_async16_zfill(void* smem, const void* global,
                                                 bool valid PUNA_AT) {
    cp_async16_part(smem, global, valid ? 16 : 0 PUNA_PASS);
}
__device__ __forceinline__ void cp_async8_zfill(void* smem, const void* global,
                                                bool valid PUNA_AT) {
    cp_async8_part(smem, global, valid ? 8 : 0 PUNA_PASS);
}
__device__ __forceinline__ void cp_async4_zfill(void* smem, const void* global,
                                                bool valid PUNA_AT) {
    cp_async4_part(smem, global, valid ? 4 : 0 PUNA_PASS);
}
