// Compiles a .cu file with plain g++, to run its kernels on the CPU: included before anything else
// of the file. CUDA's own headers give the vector, half and bf16 types, so those conversions are
// NVIDIA's; the other headers beside this one give what nvcc has built in.
//
// What it proves: arithmetic, indexing, masks, tails and synchronisation between barriers. What it
// does not: speed, bank conflicts, a GPU's approximate functions to the last bit, memory order
// without barriers, and anything that waits for another block.
#pragma once
#define PUNA_HOST 1

// Kernel files stand inside a namespace (see __shared__ below), so whatever they include from the
// system is included here first.
#include <assert.h>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <float.h>
#include <limits.h>
#include <limits>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>
#include <utility>

#include <vector_functions.h>
#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __grid_constant__
#undef __host__
#undef __launch_bounds__
#undef __noinline__
#undef __shared__

#define __constant__
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))
// Shared variables are the only ones of a kernel file that are neither constant nor initialised.
// build.rs therefore moves the compiler's section of such variables (.bss) into one of its own, which
// the runtime fills anew for every block. (A section given here would be ignored in templates.)
// For that each file also stands inside a namespace without a name: a variable of a template would
// else be shared among object files, in yet another section. And two files' helpers of one name stay
// apart, as they do under nvcc.
#define __shared__ static

#include "runtime.h"

#include "hopper.h"
#include "intrinsics.h"
#include "tensor_core.h"
#include "warp.h"
