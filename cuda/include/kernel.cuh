// What every kernel file needs whoever compiles it: dynamic shared memory, registration with the
// host harness, and a thread's place in its block.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__

// The block's dynamic shared memory, aligned for ldmatrix and swizzled rows of 128 bytes.
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
// One line a kernel at the foot of its file: tells the harness its name and arguments.
#define PUNA_KERNEL(name)
// A last parameter that says where a call stands, and how it is handed on: for what the harness
// may have to report; nothing on a GPU.
#define PUNA_AT
#define PUNA_PASS
#define PUNA_CHECK_ALIGNED(pointer, bytes) ((void)0)

#else

#ifndef PUNA_HOST
#error "without nvcc, kernels are compiled by the harness only: -include cuda/host/host.h"
#endif
#define DYN_SMEM(name) \
    unsigned char* const name = static_cast<unsigned char*>(::puna_host::dynamic_shared())
// build.rs defines it where the file is for compute capability 9.0 alone.
#ifndef PUNA_SM90A
#define PUNA_SM90A false
#endif
#define PUNA_KERNEL(name)                                                                          \
    static const ::puna_host::Register puna_register_##name(#name, &name, PUNA_SM90A);
#define PUNA_AT , const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define PUNA_PASS , file, line
#define PUNA_CHECK_ALIGNED(pointer, bytes) ::puna_host::check_aligned(pointer, bytes, file, line)

#endif

constexpr int WARP = 32;
constexpr unsigned FULL_MASK = 0xffffffffu;

// For blocks of one dimension, as all of ours are.
__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / WARP; }
