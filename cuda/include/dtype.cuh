// Element types of kernels and how they are read, converted and written. Accumulation is f32
// everywhere; a kernel's body is a template over the element type.
#pragma once

#include <cuda_bf16.h>

#include "kernel.cuh"

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }

// To the nearest, ties to even.
template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// Two f32 as the register of two bf16 that tensor cores take; `lo` lies at the lower address.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// The integer type that moves `BYTES` at once.
template <int BYTES> struct Word;
template <> struct Word<2> { using type = uint16_t; };
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

// N neighbouring elements, moved by one load or store. The address has to be a multiple of the
// pack's size: launchers check it, the harness reports where it is not.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    using Bits = typename Word<int(sizeof(T)) * N>::type;
    T v[N];

    static __device__ __forceinline__ Pack load(const T* from PUNA_AT) {
        PUNA_CHECK_ALIGNED(from, sizeof(Pack));
        const Bits bits = *reinterpret_cast<const Bits*>(from);
        Pack pack;
        memcpy(&pack, &bits, sizeof pack);
        return pack;
    }

    __device__ __forceinline__ void store(T* to PUNA_AT) const {
        PUNA_CHECK_ALIGNED(to, sizeof(Pack));
        Bits bits;
        memcpy(&bits, this, sizeof bits);
        *reinterpret_cast<Bits*>(to) = bits;
    }
};

// As many elements as 16 bytes hold: the widest load.
template <class T> constexpr int PER_16_BYTES = 16 / int(sizeof(T));
template <class T> using Pack16 = Pack<T, PER_16_BYTES<T>>;
