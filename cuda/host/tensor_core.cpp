// ldmatrix and mma: done once for the warp, when its last lane has come.
#include "tensor_core.h"

#include <cstring>

#include <vector_types.h>

#include <cuda_fp16.h>

#include "machine.h"

namespace puna_host {

namespace {

// Matrices of 8 rows of 8 elements. Lane 8 i + r names row r of matrix i; lane l receives elements
// 2 (l % 4), 2 (l % 4) + 1 of row l / 4, or of column l / 4 when transposed.
template <int N, bool TRANSPOSED> void load_matrices(void** args, uint32_t) {
    for (int i = 0; i < N; ++i) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; ++r) {
            const void* row = static_cast<MatrixLane*>(args[8 * i + r])->row;
            memcpy(m[r], row, sizeof m[r]);
        }
        for (int l = 0; l < 32; ++l) {
            const int g = l / 4, t = l % 4 * 2;
            const uint32_t lo = TRANSPOSED ? m[t][g] : m[g][t];
            const uint32_t hi = TRANSPOSED ? m[t + 1][g] : m[g][t + 1];
            static_cast<MatrixLane*>(args[l])->registers[i] = hi << 16 | lo;
        }
    }
}

struct MmaLane {
    float* d;
    const uint32_t *a, *b;
};

float bf16_value(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

float f16_value(uint16_t x) {
    __half_raw raw;
    raw.x = x;
    return __half2float(raw);
}

// Fragments as cuda/include/mma.cuh has them.
template <float (*VALUE)(uint16_t)> void multiply(void** args, uint32_t) {
    const auto low = [](uint32_t pair) { return VALUE(uint16_t(pair)); };
    const auto high = [](uint32_t pair) { return VALUE(uint16_t(pair >> 16)); };
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; ++l) {
        const MmaLane& lane = *static_cast<MmaLane*>(args[l]);
        const int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            const int row = g + i % 2 * 8, k = t + i / 2 * 8;
            a[row][k] = low(lane.a[i]);
            a[row][k + 1] = high(lane.a[i]);
        }
        for (int i = 0; i < 2; ++i) {
            b[t + i * 8][g] = low(lane.b[i]);
            b[t + i * 8 + 1][g] = high(lane.b[i]);
        }
        for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][t + i % 2] = lane.d[i];
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int col = 0; col < 8; ++col) d[row][col] += a[row][k] * b[k][col];
        }
    }
    for (int l = 0; l < 32; ++l) {
        const int g = l / 4, t = l % 4 * 2;
        float* result = static_cast<MmaLane*>(args[l])->d;
        for (int i = 0; i < 4; ++i) result[i] = d[g + i / 2 * 8][t + i % 2];
    }
}

constexpr uint32_t WHOLE_WARP = 0xffffffffu;

void whole_warp_only(const char* what, const char* file, int line) {
    // Of a block whose last warp has missing lanes.
    if (machine.fibers.size() % 32 != 0) fail_at(what, file, line);
}

}  // namespace

void ldmatrix_warp(MatrixLane& lane, int n, bool transposed, const char* file, int line) {
    whole_warp_only("ldmatrix in a block that is no multiple of 32 threads", file, line);
    const int id = machine.current->id % 32;
    if (id < 8 * n) {
        check_aligned(lane.row, 16, file, line);
        if (!is_shared(lane.row, 16)) {
            fail_at("ldmatrix reads outside of the block's shared memory", file, line);
        }
        note_access(lane.row, 16, Access::Read);
    }
    const WarpFn fn = n == 4 ? (transposed ? &load_matrices<4, true> : &load_matrices<4, false>)
                             : (transposed ? &load_matrices<2, true> : &load_matrices<2, false>);
    warp_op(WHOLE_WARP, fn, &lane, false, file, line);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file, int line) {
    whole_warp_only("mma in a block that is no multiple of 32 threads", file, line);
    MmaLane lane{d, a, b};
    warp_op(WHOLE_WARP, &multiply<bf16_value>, &lane, false, file, line);
}

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const char* file, int line) {
    whole_warp_only("mma in a block that is no multiple of 32 threads", file, line);
    MmaLane lane{d, a, b};
    warp_op(WHOLE_WARP, &multiply<f16_value>, &lane, false, file, line);
}

}  // namespace puna_host
