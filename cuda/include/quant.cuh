// Readers of quantised weights, one specialisation a format: from the planes of quant_blocks.h to
// f32 in registers, in steps that kernels spread over their pipeline:
//
//   load_codes, load_scales   raw words of a chunk (or of a word's share of it), from memory
//   decode_scales             raw words to the factors and terms of its halves
//   decode_word               the 8 weights of word t: pair p at w[2 p], w[2 p + 1]
//
// Bits. Each weight is the number that the CPU's decoder (cpu/src/quant) gives. Its products d s and
// (d s) q are exact in f32 (11 + 6 + 6 bits at most), so a fused multiply-add rounds once where the
// CPU rounds only the sum.
#pragma once

#include <cuda_fp16.h>

#include "dtype.cuh"
#include "quant_blocks.h"
#include "quant_tables.cuh"

// How scales are stored.
enum class Scaling { HALF, HALF2, K32, K16_MIN, K16, NF4, NF4_DOUBLE, NF4_RAGGED };

// LOW, HIGH: bits of a code in the two planes. ZERO: the code of a weight of zero.
template <int LOW_, int HIGH_, int ZERO_, Scaling SCALING_> struct QuantTraits {
    static constexpr int LOW = LOW_, HIGH = HIGH_, ZERO = ZERO_;
    static constexpr Scaling SCALING = SCALING_;
    static constexpr bool IS_NF4 = SCALING == Scaling::NF4 || SCALING == Scaling::NF4_DOUBLE ||
                                   SCALING == Scaling::NF4_RAGGED;
    // Weights are q scale + term.
    static constexpr bool AFFINE = SCALING == Scaling::HALF2 || SCALING == Scaling::K32 ||
                                   SCALING == Scaling::K16_MIN;
    // Words of a plane that a thread reads for word t of a chunk.
    static constexpr int LOW_WORDS = LOW == 8 ? 2 : 1;
    // f32 of tables.
    static constexpr int TABLE = !IS_NF4 ? 0 : SCALING == Scaling::NF4_DOUBLE ? 16 + 256 : 16;
    // Bytes of a unit of 256 weights in each plane.
    static constexpr int LOW_UNIT = 32 * LOW, HIGH_UNIT = 32 * HIGH;
    static constexpr int SCALE_UNIT = SCALING == Scaling::HALF2        ? 32
                                      : SCALING == Scaling::NF4_DOUBLE ? 4
                                                                       : 16;
    static constexpr int SUPER_UNIT = SCALING == Scaling::K32 || SCALING == Scaling::K16_MIN ||
                                              SCALING == Scaling::K16
                                          ? 4
                                          : 0;
};

template <int FORMAT> struct Quant;
template <> struct Quant<QUANT_NF4> : QuantTraits<4, 0, 0, Scaling::NF4> {};
template <> struct Quant<QUANT_NF4_DOUBLE> : QuantTraits<4, 0, 0, Scaling::NF4_DOUBLE> {};
template <> struct Quant<QUANT_NF4_RAGGED> : QuantTraits<4, 0, 0, Scaling::NF4_RAGGED> {};
template <> struct Quant<QUANT_Q4_0> : QuantTraits<4, 0, 8, Scaling::HALF> {};
template <> struct Quant<QUANT_Q4_1> : QuantTraits<4, 0, 0, Scaling::HALF2> {};
template <> struct Quant<QUANT_Q5_0> : QuantTraits<4, 1, 16, Scaling::HALF> {};
template <> struct Quant<QUANT_Q5_1> : QuantTraits<4, 1, 0, Scaling::HALF2> {};
template <> struct Quant<QUANT_Q8_0> : QuantTraits<8, 0, 128, Scaling::HALF> {};
template <> struct Quant<QUANT_Q2_K> : QuantTraits<2, 0, 0, Scaling::K16_MIN> {};
template <> struct Quant<QUANT_Q3_K> : QuantTraits<2, 1, 4, Scaling::K16> {};
template <> struct Quant<QUANT_Q4_K> : QuantTraits<4, 0, 0, Scaling::K32> {};
template <> struct Quant<QUANT_Q5_K> : QuantTraits<4, 1, 0, Scaling::K32> {};
template <> struct Quant<QUANT_Q6_K> : QuantTraits<4, 2, 32, Scaling::K16> {};

// A matrix: its planes.
struct QuantView {
    const uint8_t *codes, *high, *scales, *supers;
    float offset;
};

// The scales of a chunk as they are stored. NF4_RAGGED: of the block that the chunk begins in and
// of the next, which has the chunk's weights from `left` on.
struct RawScales {
    uint32_t a, b;
    int left;
};

// Factor and term of the two halves of a chunk; NF4's factor, of two blocks where it is ragged.
struct Scales {
    float by[2], plus[2];
    int left;
};

// Words first .. first + WORDS of a chunk.
template <class F, int WORDS> struct RawCodes {
    uint32_t low[WORDS * F::LOW_WORDS];
    uint32_t high[F::HIGH > 0 ? WORDS : 1];
};

template <class F, int WORDS>
__device__ __forceinline__ RawCodes<F, WORDS> load_codes(const QuantView& w, const QuantParams& p,
                                                         int64_t row, int chunk,
                                                         int first PUNA_AT) {
    RawCodes<F, WORDS> raw;
    constexpr int N = WORDS * F::LOW_WORDS < 4 ? WORDS * F::LOW_WORDS : 4;
    // Words of the row before this chunk's; 16 bytes hold 32 / LOW .. of chunks.
    const int64_t low_at = row * p.code_stride + (F::LOW == 2   ? chunk / 2 * 16
                                                  : F::LOW == 4 ? chunk * 16
                                                                : chunk * 32);
    const uint32_t* const low =
        reinterpret_cast<const uint32_t*>(w.codes + low_at) + first * F::LOW_WORDS;
#pragma unroll
    for (int i = 0; i < WORDS * F::LOW_WORDS; i += N) {
        const auto pack = Pack<uint32_t, N>::load(low + i PUNA_PASS);
#pragma unroll
        for (int j = 0; j < N; ++j) raw.low[i + j] = pack.v[j];
    }
    if constexpr (F::HIGH > 0) {
        const int64_t high_at = row * p.high_stride + chunk / (4 / F::HIGH) * 16;
        const auto pack = Pack<uint32_t, WORDS>::load(
            reinterpret_cast<const uint32_t*>(w.high + high_at) + first PUNA_PASS);
#pragma unroll
        for (int j = 0; j < WORDS; ++j) raw.high[j] = pack.v[j];
    } else {
        raw.high[0] = 0;
    }
    return raw;
}

template <class T> __device__ __forceinline__ T load_as(const uint8_t* from) {
    return *reinterpret_cast<const T*>(from);
}

template <class F>
__device__ __forceinline__ RawScales load_scales(const QuantView& w, const QuantParams& p,
                                                 int64_t row, int chunk) {
    const uint8_t* const scales = w.scales + row * p.scale_stride;
    if constexpr (F::SCALING == Scaling::HALF) {
        return {load_as<uint16_t>(scales + 2 * chunk), 0, 0};
    } else if constexpr (F::SCALING == Scaling::HALF2) {
        return {load_as<uint32_t>(scales + 4 * chunk), 0, 0};
    } else if constexpr (F::SCALING == Scaling::NF4) {
        return {load_as<uint32_t>(scales + chunk / 2 * 4), 0, 0};
    } else if constexpr (F::SCALING == Scaling::NF4_DOUBLE) {
        const int64_t block = row * (p.cols / QUANT_NF4_BLOCK) + chunk / 2;
        return {scales[chunk / 2], load_as<uint32_t>(w.supers + block / QUANT_NESTED * 4), 0};
    } else if constexpr (F::SCALING == Scaling::NF4_RAGGED) {
        const int64_t at = row * p.cols + int64_t(chunk) * QUANT_CHUNK, block = at / QUANT_NF4_BLOCK;
        const int64_t last = (int64_t(p.rows) * p.cols - 1) / QUANT_NF4_BLOCK;
        const int left = QUANT_NF4_BLOCK - int(at % QUANT_NF4_BLOCK);
        const uint32_t next =
            left < QUANT_CHUNK && block < last ? load_as<uint32_t>(w.scales + 4 * block + 4) : 0;
        return {load_as<uint32_t>(w.scales + 4 * block), next, left};
    } else {
        const uint32_t super =
            load_as<uint32_t>(w.supers + row * p.super_stride + chunk / 8 * 4);
        return {load_as<uint16_t>(scales + 2 * chunk), super, 0};
    }
}

__device__ __forceinline__ float half_of(uint32_t bits) {
    return __half2float(__ushort_as_half(uint16_t(bits & 0xffff)));
}

// `tables` as `fill_tables` left them.
template <class F>
__device__ __forceinline__ Scales decode_scales(const RawScales& raw, float offset,
                                                const float* tables) {
    Scales s = {{0.f, 0.f}, {0.f, 0.f}, raw.left};
    if constexpr (F::SCALING == Scaling::HALF) {
        s.by[0] = s.by[1] = half_of(raw.a);
    } else if constexpr (F::SCALING == Scaling::HALF2) {
        s.by[0] = s.by[1] = half_of(raw.a);
        s.plus[0] = s.plus[1] = half_of(raw.a >> 16);
    } else if constexpr (F::SCALING == Scaling::K32) {
        s.by[0] = s.by[1] = half_of(raw.b) * float(raw.a & 255);
        s.plus[0] = s.plus[1] = -(half_of(raw.b >> 16) * float(raw.a >> 8 & 255));
    } else if constexpr (F::SCALING == Scaling::K16_MIN) {
        const float d = half_of(raw.b), dmin = half_of(raw.b >> 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t byte = raw.a >> (8 * i);
            s.by[i] = d * float(byte & 15), s.plus[i] = -(dmin * float(byte >> 4 & 15));
        }
    } else if constexpr (F::SCALING == Scaling::K16) {
        const float d = half_of(raw.b);
#pragma unroll
        for (int i = 0; i < 2; ++i) s.by[i] = d * float(int8_t(raw.a >> (8 * i) & 255));
    } else if constexpr (F::SCALING == Scaling::NF4_DOUBLE) {
        // Two roundings, as the CPU's; a fused one would have other bits.
        const float product = __fmul_rn(tables[16 + (raw.a & 255)], __uint_as_float(raw.b));
        s.by[0] = s.by[1] = __fadd_rn(product, offset);
    } else {
        s.by[0] = __uint_as_float(raw.a), s.by[1] = __uint_as_float(raw.b);
    }
    return s;
}

// The codes of a word as bytes: pair p in byte p, `even` those of e = 0.
struct CodeBytes {
    uint32_t even, odd;
};

template <class F>
__device__ __forceinline__ CodeBytes code_bytes(const uint32_t* low, uint32_t high, int chunk) {
    CodeBytes c;
    if constexpr (F::LOW == 8) {
        c = {low[0], low[1]};
    } else if constexpr (F::LOW == 4) {
        c = {low[0] & 0x0f0f0f0fu, low[0] >> 4 & 0x0f0f0f0fu};
    } else {
        const uint32_t bits = low[0] >> (chunk % 2 * 4);
        c = {bits & 0x03030303u, bits >> 2 & 0x03030303u};
    }
    if constexpr (F::HIGH == 2) {
        const uint32_t bits = high >> (chunk % 2 * 4);
        c.even |= (bits & 0x03030303u) << F::LOW, c.odd |= (bits >> 2 & 0x03030303u) << F::LOW;
    } else if constexpr (F::HIGH == 1) {
        const uint32_t bits = high >> (chunk % 4 * 2);
        c.even |= (bits & 0x01010101u) << F::LOW, c.odd |= (bits >> 1 & 0x01010101u) << F::LOW;
    }
    return c;
}

// Byte `i` of `bytes` less ZERO, as f32: put into the last bits of 2^23, it is added exactly.
template <int ZERO> __device__ __forceinline__ float byte_to_f32(uint32_t bytes, int i) {
    return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | unsigned(i))) -
           float((1 << 23) + ZERO);
}

// Word t of a chunk.
template <class F>
__device__ __forceinline__ void decode_word(float (&w)[8], const uint32_t* low, uint32_t high,
                                            int chunk, int t, const Scales& s,
                                            const float* tables) {
    if constexpr (F::IS_NF4) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float by = s.by[0];
            if constexpr (F::SCALING == Scaling::NF4_RAGGED) {
                if (i / 2 * 8 + 2 * t + i % 2 >= s.left) by = s.by[1];
            }
            w[i] = tables[low[0] >> (4 * i) & 15] * by;
        }
        return;
    }
    const CodeBytes c = code_bytes<F>(low, high, chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float q = byte_to_f32<F::ZERO>(i % 2 == 0 ? c.even : c.odd, i / 2);
        w[i] = F::AFFINE ? fmaf(q, s.by[i / 4], s.plus[i / 4]) : q * s.by[i / 4];
    }
}

// Weights 8 octet .. of a chunk, in order: one pair of each of its words.
template <class F>
__device__ __forceinline__ void decode_octet(float (&w)[8], const QuantView& view,
                                             const QuantParams& p, int64_t row, int chunk,
                                             int octet, const float* tables) {
    const auto raw = load_codes<F, 4>(view, p, row, chunk, 0);
    const Scales s = decode_scales<F>(load_scales<F>(view, p, row, chunk), view.offset, tables);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
        float word[8];
        decode_word<F>(word, raw.low + t * F::LOW_WORDS, raw.high[F::HIGH > 0 ? t : 0], chunk, t, s,
                       tables);
        // Selected, not indexed: registers have no addresses.
#pragma unroll
        for (int o = 0; o < 4; ++o) {
            if (o == octet) w[2 * t] = word[2 * o], w[2 * t + 1] = word[2 * o + 1];
        }
    }
}

// Calls `body` with the traits of a format that is known at run time only.
template <class Body> __device__ __forceinline__ void with_format(uint32_t format, Body body) {
    switch (format) {
        case QUANT_NF4: body(Quant<QUANT_NF4>{}); break;
        case QUANT_NF4_DOUBLE: body(Quant<QUANT_NF4_DOUBLE>{}); break;
        case QUANT_NF4_RAGGED: body(Quant<QUANT_NF4_RAGGED>{}); break;
        case QUANT_Q4_0: body(Quant<QUANT_Q4_0>{}); break;
        case QUANT_Q4_1: body(Quant<QUANT_Q4_1>{}); break;
        case QUANT_Q5_0: body(Quant<QUANT_Q5_0>{}); break;
        case QUANT_Q5_1: body(Quant<QUANT_Q5_1>{}); break;
        case QUANT_Q8_0: body(Quant<QUANT_Q8_0>{}); break;
        case QUANT_Q2_K: body(Quant<QUANT_Q2_K>{}); break;
        case QUANT_Q3_K: body(Quant<QUANT_Q3_K>{}); break;
        case QUANT_Q4_K: body(Quant<QUANT_Q4_K>{}); break;
        case QUANT_Q5_K: body(Quant<QUANT_Q5_K>{}); break;
        case QUANT_Q6_K: body(Quant<QUANT_Q6_K>{}); break;
        default: break;
    }
}
