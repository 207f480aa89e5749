// What one thread of an element-wise kernel works on: LANES neighbouring numbers of either type,
// held as f32. Whole lanes of aligned memory move 16 bytes at a time, the rest one by one.
#pragma once

#include "dtype.cuh"
#include "elements.h"

constexpr int LANES = ELEMENT_LANES;

// N numbers as f32; N is 1 or whole packs of 16 bytes, for which `from` is 16-byte aligned.
template <int N, class T>
__device__ __forceinline__ void load_f32(float (&to)[N], const T* from PUNA_AT) {
    if constexpr (N == 1) {
        to[0] = to_f32(from[0]);
    } else {
        constexpr int P = PER_16_BYTES<T>;
        static_assert(N % P == 0, "whole packs");
#pragma unroll
        for (int i = 0; i < N; i += P) {
            const Pack16<T> pack = Pack16<T>::load(from + i PUNA_PASS);
#pragma unroll
            for (int j = 0; j < P; ++j) to[i + j] = to_f32(pack.v[j]);
        }
    }
}

template <int N, class T>
__device__ __forceinline__ void store_f32(T* to, const float (&from)[N] PUNA_AT) {
    if constexpr (N == 1) {
        to[0] = from_f32<T>(from[0]);
    } else {
        constexpr int P = PER_16_BYTES<T>;
        static_assert(N % P == 0, "whole packs");
#pragma unroll
        for (int i = 0; i < N; i += P) {
            Pack16<T> pack;
#pragma unroll
            for (int j = 0; j < P; ++j) pack.v[j] = from_f32<T>(from[i + j]);
            pack.store(to + i PUNA_PASS);
        }
    }
}

// The part of `n` elements that falls to a thread of the `block`th block of THREADS: `count` of
// them, 0 to LANES, from `at` on.
struct Lanes {
    size_t at;
    int count;
};

template <int THREADS> __device__ __forceinline__ Lanes lanes_of(unsigned block, size_t n) {
    const size_t at = (size_t(block) * THREADS + threadIdx.x) * LANES;
    const size_t left = at < n ? n - at : 0;
    return {at, left < LANES ? int(left) : LANES};
}

// `wide`: the array that `from` points into is 16-byte aligned, and so are its rows if it has some.
template <class T>
__device__ __forceinline__ void load_lanes(float (&to)[LANES], const T* from, int count,
                                           bool wide PUNA_AT) {
    if (wide && count == LANES) {
        load_f32<LANES>(to, from PUNA_PASS);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) to[i] = i < count ? to_f32(from[i]) : 0.f;
}

template <class T>
__device__ __forceinline__ void store_lanes(T* to, const float (&from)[LANES], int count,
                                            bool wide PUNA_AT) {
    if (wide && count == LANES) {
        store_f32<LANES>(to, from PUNA_PASS);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        if (i < count) to[i] = from_f32<T>(from[i]);
    }
}
