// The gated activation of the feed-forward block (Shazeer 2020, arXiv 2002.05202), forward and
// backward, element by element over [n]. Arithmetic in f32; what is stored as bf16 is rounded once
// more. All of the outputs is overwritten.

#include "include/elements.cuh"
#include "include/swiglu.h"

namespace {

// out = silu(gate) up with silu(gate) = gate / (1 + exp(-gate)). Where exp(-gate) overflows, the
// quotient is the zero that the true value is next to.
template <class O, class X>
__device__ __forceinline__ void swiglu(O* out, const X* gate, const X* up, const SwiGluParams& p) {
    const Lanes own = lanes_of<SWIGLU_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float g[LANES], u[LANES];
    load_lanes(g, gate + own.at, own.count, p.wide);
    load_lanes(u, up + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) g[i] = g[i] / (1.f + expf(-g[i])) * u[i];
    store_lanes(out + own.at, g, own.count, p.wide);
}

// The gradients of `swiglu`: with s = 1 / (1 + exp(-gate)),
//   dup = dout gate s,   dgate = dout up s (1 + gate (1 - s)).
template <class D, class G, class X>
__device__ __forceinline__ void swiglu_bwd(D* dgate, D* dup, const G* dout, const X* gate,
                                           const X* up, const SwiGluParams& p) {
    const Lanes own = lanes_of<SWIGLU_THREADS>(blockIdx.x, p.n);
    if (own.count == 0) return;
    float d[LANES], g[LANES], u[LANES];
    load_lanes(d, dout + own.at, own.count, p.wide);
    load_lanes(g, gate + own.at, own.count, p.wide);
    load_lanes(u, up + own.at, own.count, p.wide);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const float s = 1.f / (1.f + expf(-g[i]));
        const float slope = s * (g[i] * (1.f - s) + 1.f);
        g[i] = d[i] * (g[i] * s);
        u[i] = d[i] * u[i] * slope;
    }
    store_lanes(dup + own.at, g, own.count, p.wide);
    store_lanes(dgate + own.at, u, own.count, p.wide);
}

}  // namespace

// Names: the output's type, then the type of gate and up.
#define SWIGLU(name, O, X)                                                                     \
    extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)                               \
        name(O* out, const X* gate, const X* up, SwiGluParams p) {                             \
        swiglu(out, gate, up, p);                                                              \
    }                                                                                          \
    PUNA_KERNEL(name)

SWIGLU(swiglu_f32_f32, float, float)
SWIGLU(swiglu_f32_bf16, float, bf16)
SWIGLU(swiglu_bf16_f32, bf16, float)
SWIGLU(swiglu_bf16_bf16, bf16, bf16)

// Names: the type of dgate and dup, of dout, of gate and up.
#define SWIGLU_BWD(name, D, G, X)                                                              \
    extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)                               \
        name(D* dgate, D* dup, const G* dout, const X* gate, const X* up, SwiGluParams p) {    \
        swiglu_bwd(dgate, dup, dout, gate, up, p);                                             \
    }                                                                                          \
    PUNA_KERNEL(name)

SWIGLU_BWD(swiglu_bwd_f32_f32_f32, float, float, float)
SWIGLU_BWD(swiglu_bwd_f32_f32_bf16, float, float, bf16)
SWIGLU_BWD(swiglu_bwd_f32_bf16_f32, float, bf16, float)
SWIGLU_BWD(swiglu_bwd_f32_bf16_bf16, float, bf16, bf16)
SWIGLU_BWD(swiglu_bwd_bf16_f32_f32, bf16, float, float)
SWIGLU_BWD(swiglu_bwd_bf16_f32_bf16, bf16, float, bf16)
SWIGLU_BWD(swiglu_bwd_bf16_bf16_f32, bf16, bf16, float)
SWIGLU_BWD(swiglu_bwd_bf16_bf16_bf16, bf16, bf16, bf16)
