// Functions of CUDA's headers that exist on the device only: arithmetic, bits, loads, integer
// atomics. Approximate functions are libm's here, so their last bits differ from a GPU's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

// ---- reinterpretation ----

inline float __int_as_float(int x) {
    float y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) {
    float y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline int __float_as_int(float x) {
    int y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline unsigned __float_as_uint(float x) {
    unsigned y;
    memcpy(&y, &x, sizeof y);
    return y;
}

// ---- f32 ----

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1. / sqrt(double(x))); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }

inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return unsigned(nearbyintf(x)); }
inline unsigned __float2uint_rz(float x) { return unsigned(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

// Floats as fminf and fmaxf have it: a number wins over a NaN.
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) {
        return std::fmin(T(a), T(b));
    } else {
        return T(b) < T(a) ? T(b) : T(a);
    }
}
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) {
        return std::fmax(T(a), T(b));
    } else {
        return T(a) < T(b) ? T(b) : T(a);
    }
}

// ---- bits ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) {
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
// Each half byte of `selector` picks one of the eight bytes of b, a; its top bit copies the sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 15;
        unsigned byte = unsigned(bytes >> (8 * (pick & 7))) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        y |= byte << (8 * i);
    }
    return y;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned by) {
    return unsigned((uint64_t(hi) << 32 | lo) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned by) {
    return unsigned((uint64_t(hi) << 32 | lo) >> (by & 31));
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
// c + the sum of four products of signed (unsigned) bytes.
inline int __dp4a(int a, int b, int c) {
    unsigned sum = unsigned(c);
    for (int i = 0; i < 4; ++i) {
        sum += unsigned(int(int8_t(unsigned(a) >> 8 * i)) * int(int8_t(unsigned(b) >> 8 * i)));
    }
    return int(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return c;
}

// ---- loads and stores that hint at a cache ----

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldlu(const T* p) { return *p; }
template <class T> inline void __stcg(T* p, T x) { *p = x; }
template <class T> inline void __stcs(T* p, T x) { *p = x; }
template <class T> inline void __stwb(T* p, T x) { *p = x; }
template <class T> inline void __stwt(T* p, T x) { *p = x; }

inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    puna_host::fail_at("__trap", file, line);
}

// ---- atomics, on integers only: a sum of floats would depend on the order of arrival ----

namespace puna_host {
// Fibers take turns, so nothing comes between the read and the write.
template <class T, class F>
__attribute__((no_sanitize("thread"))) inline T atomic(T* p, F f) {
    static_assert(std::is_integral<T>::value, "atomics on floats are not deterministic");
    note_access(p, sizeof(T), Access::Atomic);
    const T old = *p;
    *p = f(old);
    return old;
}
template <class T> using Same = std::common_type_t<T>;
template <class T> inline T wrapping_add(T a, T b) {
    using U = std::make_unsigned_t<T>;
    return T(U(a) + U(b));
}
}  // namespace puna_host

template <class T> inline T atomicAdd(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return puna_host::wrapping_add(old, x); });
}
template <class T> inline T atomicSub(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return puna_host::wrapping_add(old, T(0 - x)); });
}
template <class T> inline T atomicMax(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return old < x ? x : old; });
}
template <class T> inline T atomicMin(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return x < old ? x : old; });
}
template <class T> inline T atomicAnd(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return T(old & x); });
}
template <class T> inline T atomicOr(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return T(old | x); });
}
template <class T> inline T atomicXor(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T old) { return T(old ^ x); });
}
template <class T> inline T atomicExch(T* p, puna_host::Same<T> x) {
    return puna_host::atomic(p, [x](T) { return x; });
}
template <class T> inline T atomicCAS(T* p, puna_host::Same<T> expected, puna_host::Same<T> x) {
    return puna_host::atomic(p, [=](T old) { return old == expected ? x : old; });
}
