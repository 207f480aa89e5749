// Products of 1 to 16 rows with quantised weights, at the speed of the memory that the packed bits
// come from: out = alpha (x W^T + u B^T) + bias, or out += ..., or gated, out = silu(x W1^T) * (x
// W3^T).
//
// out [m, n], f32 or bf16 (rounded once); x [m, k], bf16, or f32 that is rounded to bf16; W [n, k] as
// quant_blocks.h has it, decoded in f32 and rounded to bf16; u [m, k2] and B [n, k2], bf16, where k2 >
// 0; bias [n], f32 or bf16, or none. f32 sums, the chains of include/matmul_tile.cuh: so the bits are
// the tiled kernels'. Overwrites, or adds with MATMUL_ACC. Rows of x are 16-byte aligned, k a multiple
// of 8; rows of u and B are 4-byte aligned, k2 even.
//
// A warp has 8 rows of W and copies their packed planes by itself, 256 inputs a stage, four stages
// ahead; x is shared by the block's warps. The order of the planes' bits is that of fragments, so what
// a lane reads from shared memory (a word for 8 weights) it decodes straight into its registers of the
// mma. Inputs are not split over warps.
#include "include/matmul_tile.cuh"
#include "include/quant.cuh"

namespace {

// Where a warp's share of a stage has its planes. Rows are longer than what is copied by `PAD` bytes:
// lanes of 8 rows then meet different banks.
template <class F> struct SkinnyPlanes {
    static constexpr int ROWS = SKINNY_COLS;
    static constexpr int CODE_ROW = F::LOW_UNIT + (F::LOW == 8 ? 32 : 16);
    static constexpr int HIGH_ROW = F::HIGH > 0 ? F::HIGH_UNIT + 16 : 0;
    static constexpr int SCALE_ROW = F::SCALE_UNIT == 32 ? 48 : F::SCALE_UNIT;
    // Of doubly quantised NF4 the `largest` of a unit's first and last block.
    static constexpr bool NESTED = F::SCALING == Scaling::NF4_DOUBLE;
    static constexpr int SUPER_ROW = NESTED ? 8 : F::SUPER_UNIT;
    static constexpr int HIGH = ROWS * CODE_ROW, SCALE = HIGH + ROWS * HIGH_ROW;
    static constexpr int SUPER = SCALE + ROWS * SCALE_ROW;
    static constexpr int BYTES = (SUPER + ROWS * SUPER_ROW + 15) / 16 * 16;
};

// Copies BYTES of a unit of each of a warp's 8 rows; what is behind a row's end becomes zero.
template <int BYTES, int ROW>
__device__ __forceinline__ void copy_plane(uint8_t* to, const uint8_t* plane, uint32_t stride,
                                           int unit, int first, int n) {
    constexpr int PIECE = BYTES < 16 ? BYTES : 16, PIECES = BYTES / PIECE;
    static_assert(PIECE == 16 || PIECE == 4, "sizes of copies");
#pragma unroll
    for (int i0 = 0; i0 < SKINNY_COLS * PIECES; i0 += WARP) {
        const int i = i0 + lane_id();
        if (SKINNY_COLS * PIECES % WARP != 0 && i >= SKINNY_COLS * PIECES) break;
        const int row = i / PIECES, at = i % PIECES * PIECE;
        // Rows behind the last are read as the last: their outputs are not stored.
        const int64_t from = int64_t(min(first + row, n - 1)) * stride;
        const uint32_t in_row = uint32_t(unit) * BYTES + at;
        const bool inside = in_row < stride;
        const uint8_t* const source = inside ? plane + from + in_row : plane;
        if constexpr (PIECE == 16) {
            cp_async16_zfill(to + row * ROW + at, source, inside);
        } else {
            cp_async4_zfill(to + row * ROW + at, source, inside);
        }
    }
}

template <class F>
__device__ __forceinline__ void copy_unit(uint8_t* to, const QuantView& w, const QuantParams& p,
                                          int unit, int first) {
    using At = SkinnyPlanes<F>;
    copy_plane<F::LOW_UNIT, At::CODE_ROW>(to, w.codes, p.code_stride, unit, first, p.rows);
    if constexpr (F::HIGH > 0) {
        copy_plane<F::HIGH_UNIT, At::HIGH_ROW>(to + At::HIGH, w.high, p.high_stride, unit, first,
                                               p.rows);
    }
    copy_plane<F::SCALE_UNIT, At::SCALE_ROW>(to + At::SCALE, w.scales, p.scale_stride, unit, first,
                                             p.rows);
    if constexpr (At::NESTED) {
        if (lane_id() < 2 * SKINNY_COLS) {
            const int row = lane_id() / 2;
            const int64_t blocks = p.cols / QUANT_NF4_BLOCK;
            const int64_t block = min(first + row, p.rows - 1) * blocks + unit * 4;
            const int64_t last = (p.rows * blocks - 1) / QUANT_NESTED;
            const int64_t of = min(block / QUANT_NESTED + lane_id() % 2, last);
            cp_async4(to + At::SUPER + 4 * lane_id(), w.supers + 4 * of);
        }
    } else if constexpr (At::SUPER_ROW > 0) {
        copy_plane<At::SUPER_ROW, At::SUPER_ROW>(to + At::SUPER, w.supers, p.super_stride, unit,
                                                 first, p.rows);
    }
}

__device__ __forceinline__ uint32_t word_at(const uint8_t* from) {
    return *reinterpret_cast<const uint32_t*>(from);
}

// Row g's scales of chunk `chunk` of a unit. `first_block`: number of the row's first NF4 block of
// the unit within its 256.
template <class F>
__device__ __forceinline__ RawScales unit_scales(const uint8_t* planes, int g, int chunk,
                                                 int first_block) {
    using At = SkinnyPlanes<F>;
    const uint8_t* const scales = planes + At::SCALE + g * At::SCALE_ROW;
    if constexpr (F::SCALING == Scaling::HALF) {
        return {load_as<uint16_t>(scales + 2 * chunk), 0, 0};
    } else if constexpr (F::SCALING == Scaling::HALF2) {
        return {word_at(scales + 4 * chunk), 0, 0};
    } else if constexpr (F::SCALING == Scaling::NF4) {
        return {word_at(scales + chunk / 2 * 4), 0, 0};
    } else if constexpr (F::SCALING == Scaling::NF4_DOUBLE) {
        const int next = first_block + chunk / 2 >= QUANT_NESTED ? 4 : 0;
        return {scales[chunk / 2], word_at(planes + At::SUPER + 8 * g + next), 0};
    } else {
        return {load_as<uint16_t>(scales + 2 * chunk), word_at(planes + At::SUPER + 4 * g), 0};
    }
}

// Fragments B of 8 rows of W for a chunk's two steps of 16 inputs.
template <class F>
__device__ __forceinline__ void decode_b(uint32_t (&b)[2][2], const uint8_t* planes, int chunk,
                                         int first_block, float offset, const float* tables) {
    using At = SkinnyPlanes<F>;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const uint8_t* const codes = planes + g * At::CODE_ROW;
    uint32_t low[2] = {0, 0}, high = 0;
    if constexpr (F::LOW == 8) {
        const auto both =
            Pack<uint32_t, 2>::load(reinterpret_cast<const uint32_t*>(codes + 32 * chunk + 8 * t));
        low[0] = both.v[0], low[1] = both.v[1];
    } else if constexpr (F::LOW == 4) {
        low[0] = word_at(codes + 16 * chunk + 4 * t);
    } else {
        low[0] = word_at(codes + chunk / 2 * 16 + 4 * t);
    }
    if constexpr (F::HIGH > 0) {
        high = word_at(planes + At::HIGH + g * At::HIGH_ROW + chunk / (4 / F::HIGH) * 16 + 4 * t);
    }
    const Scales s =
        decode_scales<F>(unit_scales<F>(planes, g, chunk, first_block), offset, tables);
    float v[8];
    decode_word<F>(v, low, high, chunk, t, s, tables);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = pack_bf16(v[2 * i], v[2 * i + 1]);
}

// x of a stage: m rows of a unit, and one piece of zeros for the rows that it lacks.
struct SkinnyX {
    const uint8_t* rows;
    const uint8_t* zeros;
    int m;
};

constexpr int F32_ROW = (QUANT_UNIT + QUANT_SKINNY_PAD) * 4, BF16_ROW = QUANT_UNIT * 2;

// Fragment A of 16 inputs from k on. IS_F32 is the same for the whole grid.
__device__ __forceinline__ void load_unit_a(uint32_t (&a)[4], const SkinnyX& x, bool is_f32, int k) {
    if (is_f32) {
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = g + i % 2 * 8, col = k + i / 2 * 8 + 2 * t;
            Pack<float, 2> pair = {0.f, 0.f};
            if (row < x.m) {
                pair = Pack<float, 2>::load(
                    reinterpret_cast<const float*>(x.rows + row * F32_ROW + 4 * col));
            }
            a[i] = pack_bf16(pair.v[0], pair.v[1]);
        }
        return;
    }
    const int l = lane_id(), row = l % 16;
    const uint8_t* const at = x.rows + 2 * swizzled<QUANT_UNIT>(row, k + l / 16 * 8);
    ldmatrix_x4(a, row < x.m ? at : x.zeros);
}

template <class F, bool GATED>
__device__ __forceinline__ void quant_skinny(void* out, const void* x, const QuantView& w,
                                             const QuantView& w3, const bf16* u, const bf16* b,
                                             const void* bias, const QuantParams& params) {
    using At = SkinnyPlanes<F>;
    constexpr int PRODUCTS = GATED ? 2 : 1, W_BYTES = PRODUCTS * At::BYTES;
    DYN_SMEM(smem);
    const MatmulParams& p = params.product;
    const int warps = int(blockDim.x) / WARP, first = int(blockIdx.x) * warps * SKINNY_COLS;
    const int own = first + warp_id() * SKINNY_COLS;
    const bool is_f32 = p.a_type == MATMUL_F32;
    const int x_row = is_f32 ? F32_ROW : BF16_ROW;
    const int stage_bytes = p.m * x_row + warps * W_BYTES;
    float* const tables = reinterpret_cast<float*>(smem);
    uint8_t* const zeros = smem + QUANT_TABLE_BYTES;
    uint8_t* const stages = zeros + QUANT_SKINNY_ZEROS;
    const int chunks = tiles_of(p.k, QUANT_CHUNK), units = tiles_of(p.k, QUANT_UNIT);

    auto stage_of = [&](int t) { return stages + t % QUANT_SKINNY_STAGES * stage_bytes; };
    auto planes_of = [&](int t) { return stage_of(t) + p.m * x_row + warp_id() * W_BYTES; };
    auto copy_stage = [&](int t) {
        // Weights first: theirs is the way from memory.
        copy_unit<F>(planes_of(t), w, params, t, own);
        if constexpr (GATED) copy_unit<F>(planes_of(t) + At::BYTES, w3, params, t, own);
        const int per_row = is_f32 ? QUANT_UNIT / 4 : QUANT_UNIT / 8;
        for (int i = int(threadIdx.x); i < p.m * per_row; i += int(blockDim.x)) {
            const int row = i / per_row, col = i % per_row * (QUANT_UNIT / per_row);
            const int at = t * QUANT_UNIT + col;
            const bool inside = at < p.k;
            const int64_t from = inside ? int64_t(row) * p.k + at : 0;
            if (is_f32) {
                cp_async16_zfill(stage_of(t) + row * F32_ROW + 4 * col,
                                 static_cast<const float*>(x) + from, inside);
            } else {
                cp_async16_zfill(stage_of(t) + 2 * swizzled<QUANT_UNIT>(row, col),
                                 static_cast<const bf16*>(x) + from, inside);
            }
        }
    };

#pragma unroll
    for (int t = 0; t < QUANT_SKINNY_STAGES - 1; ++t) {
        if (t < units) copy_stage(t);
        cp_async_commit();
    }
    if constexpr (F::TABLE > 0) fill_tables<F::TABLE>(tables);
    if (threadIdx.x < QUANT_SKINNY_ZEROS / 4) {
        reinterpret_cast<uint32_t*>(zeros)[threadIdx.x] = 0;
    }
    Acc acc[PRODUCTS];
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.f;
    // NF4's blocks of a row begin at this one, of the row that this lane decodes.
    const int64_t row_block = min(own + lane_id() / 4, params.rows - 1) *
                              int64_t(params.cols / QUANT_NF4_BLOCK);

    for (int t = 0; t < units; ++t) {
        cp_async_wait<QUANT_SKINNY_STAGES - 2>();
        __syncthreads();
        if (t + QUANT_SKINNY_STAGES - 1 < units) copy_stage(t + QUANT_SKINNY_STAGES - 1);
        cp_async_commit();
        const SkinnyX xs = {stage_of(t), zeros, p.m};
        const uint8_t* const planes = planes_of(t);
        const int first_block = int((row_block + t * 4) % QUANT_NESTED);
        const int count = min(QUANT_UNIT / QUANT_CHUNK, chunks - t * (QUANT_UNIT / QUANT_CHUNK));
#pragma unroll 4
        for (int chunk = 0; chunk < count; ++chunk) {
            uint32_t a[2][4], bs[PRODUCTS][2][2];
            load_unit_a(a[0], xs, is_f32, chunk * QUANT_CHUNK);
            load_unit_a(a[1], xs, is_f32, chunk * QUANT_CHUNK + 16);
            decode_b<F>(bs[0], planes, chunk, first_block, w.offset, tables);
            if constexpr (GATED) {
                decode_b<F>(bs[1], planes + At::BYTES, chunk, first_block, w3.offset, tables);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
                for (int i = 0; i < PRODUCTS; ++i) mma_bf16(acc[i], a[j], bs[i][j]);
            }
        }
    }

    // The second pair of factors, from where it lies: it is small.
    const int g = lane_id() / 4, lane_t = lane_id() % 4;
    for (int k = 0; k < p.k2; k += 16) {
        uint32_t a[4], bf[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = g + i % 2 * 8, at = k + i / 2 * 8 + 2 * lane_t;
            const auto pair = row < p.m && at < p.k2
                                  ? Pack<bf16, 2>::load(u + int64_t(row) * p.k2 + at)
                                  : Pack<bf16, 2>{};
            memcpy(&a[i], &pair, sizeof a[i]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int at = k + i * 8 + 2 * lane_t;
            const auto pair = own + g < p.n && at < p.k2
                                  ? Pack<bf16, 2>::load(b + int64_t(own + g) * p.k2 + at)
                                  : Pack<bf16, 2>{};
            memcpy(&bf[i], &pair, sizeof bf[i]);
        }
        mma_bf16(acc[0], a, bf);
    }
    if constexpr (GATED) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[0][i] = silu(acc[0][i]) * acc[1][i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = acc_row(2 * half);
        if (row >= p.m) continue;
        const float v0 = acc[0][2 * half], v1 = acc[0][2 * half + 1];
        if (p.flags & MATMUL_OUT_BF16) {
            put_pair(static_cast<bf16*>(out), bias, p, row, own + acc_col(0), v0, v1);
        } else {
            put_pair(static_cast<float*>(out), bias, p, row, own + acc_col(0), v0, v1);
        }
    }
}

}  // namespace

// Blocks of up to QUANT_SKINNY_WARPS warps. The second product of a gated one has its weights in the
// second four planes.
#define QUANT_SKINNY_INSTANCE(name, FORMAT, BYTES_)                                                \
    static_assert(SkinnyPlanes<Quant<FORMAT>>::BYTES == BYTES_, "as the launcher has it");         \
    extern "C" __global__ void __launch_bounds__(QUANT_SKINNY_WARPS* WARP)                         \
        quant_skinny_##name(void* out, const void* x, const uint8_t* codes, const uint8_t* high,   \
                            const uint8_t* scales, const uint8_t* supers, const bf16* u,           \
                            const bf16* b, const void* bias, QuantParams p) {                      \
        const QuantView w = {codes, high, scales, supers, p.offset};                               \
        quant_skinny<Quant<FORMAT>, false>(out, x, w, w, u, b, bias, p);                           \
    }                                                                                              \
    PUNA_KERNEL(quant_skinny_##name)                                                               \
    extern "C" __global__ void __launch_bounds__(QUANT_SKINNY_WARPS* WARP)                         \
        quant_skinny_gated_##name(void* out, const void* x, const uint8_t* codes,                  \
                                  const uint8_t* high, const uint8_t* scales,                      \
                                  const uint8_t* supers, const uint8_t* codes3,                    \
                                  const uint8_t* high3, const uint8_t* scales3,                    \
                                  const uint8_t* supers3, QuantParams p) {                         \
        const QuantView w = {codes, high, scales, supers, p.offset};                               \
        const QuantView w3 = {codes3, high3, scales3, supers3, p.offset3};                         \
        quant_skinny<Quant<FORMAT>, true>(out, x, w, w3, nullptr, nullptr, nullptr, p);            \
    }                                                                                              \
    PUNA_KERNEL(quant_skinny_gated_##name)

QUANT_SKINNY_INSTANCE(nf4, QUANT_NF4, QUANT_SKINNY_NF4)
QUANT_SKINNY_INSTANCE(nf4_double, QUANT_NF4_DOUBLE, QUANT_SKINNY_NF4_DOUBLE)
QUANT_SKINNY_INSTANCE(q4_0, QUANT_Q4_0, QUANT_SKINNY_Q4_0)
QUANT_SKINNY_INSTANCE(q4_1, QUANT_Q4_1, QUANT_SKINNY_Q4_1)
QUANT_SKINNY_INSTANCE(q5_0, QUANT_Q5_0, QUANT_SKINNY_Q5_0)
QUANT_SKINNY_INSTANCE(q5_1, QUANT_Q5_1, QUANT_SKINNY_Q5_1)
QUANT_SKINNY_INSTANCE(q8_0, QUANT_Q8_0, QUANT_SKINNY_Q8_0)
QUANT_SKINNY_INSTANCE(q2_k, QUANT_Q2_K, QUANT_SKINNY_Q2_K)
QUANT_SKINNY_INSTANCE(q3_k, QUANT_Q3_K, QUANT_SKINNY_Q3_K)
QUANT_SKINNY_INSTANCE(q4_k, QUANT_Q4_K, QUANT_SKINNY_Q4_K)
QUANT_SKINNY_INSTANCE(q5_k, QUANT_Q5_K, QUANT_SKINNY_Q5_K)
QUANT_SKINNY_INSTANCE(q6_k, QUANT_Q6_K, QUANT_SKINNY_Q6_K)
