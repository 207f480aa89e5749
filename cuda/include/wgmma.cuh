// What kernels of warp groups share: tiles in shared memory and the descriptors that name them to
// the tensor cores, the ring of stages between copies and products.
//
// A tile is made of squares of 64 bf16 across, 128 bytes, row after row, chunks permuted as
// `swizzled<64>` does. That is one and the same as the hardware's 128-byte mode: address bits 4 to 6
// are exclusive-ored with bits 7 to 9, so a square begins at a multiple of 1024 bytes; eight rows
// are 1024 bytes, and the pattern repeats with them. Source: PTX ISA, "Shared Memory Matrix Layout",
// "Matrix Descriptor Format"; the canonical layouts in CUTLASS, cute/atom/mma_traits_sm90_gmma.hpp.
#pragma once

#include "mma.cuh"
#include "ptx_sm90a.cuh"

// Bytes of eight rows, and elements of a square of so many rows.
constexpr int EIGHT_ROWS = 8 * BOX_COLS * 2;
__host__ __device__ constexpr int square_size(int rows) { return rows * BOX_COLS; }

// The descriptor's fields, in units of 16 bytes: start (bits 0-13), leading (16-29) and stride
// (32-45) byte offsets, mode (62-63; 1: 128 bytes).
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* smem, int leading, int stride) {
    const uint64_t start = (smem_u32(smem) & 0x3ffff) >> 4;
    return start | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(1) << 62;
}

// A factor whose inputs run along memory: a square [rows or columns, 64 inputs] of any height that
// is a multiple of 8. Eight rows lie a stride before the next eight; the leading offset is not used.
__device__ __forceinline__ uint64_t wgmma_inputs_along(const bf16* square) {
    return wgmma_descriptor(square, 16, EIGHT_ROWS);
}

// A factor whose rows or columns run along memory: squares [inputs, 64 rows or columns] that begin
// `leading` bytes after each other; eight inputs lie a stride before the next eight.
__device__ __forceinline__ uint64_t wgmma_inputs_across(const bf16* squares, int leading) {
    return wgmma_descriptor(squares, leading, EIGHT_ROWS);
}

// To the next 16 inputs: 32 bytes along a row, or 16 rows further.
template <bool ACROSS> constexpr uint64_t NEXT_16 = (ACROSS ? 2 * EIGHT_ROWS : 32) >> 4;

// A place in a ring of STAGES, and the parity of the round that it is in.
template <int STAGES> struct RingAt {
    int slot = 0;
    uint32_t round = 0;

    __device__ __forceinline__ void next() {
        if (++slot == STAGES) slot = 0, round ^= 1;
    }
};

// Of each stage: its copies have landed; its readers are done.
template <int STAGES> struct RingBarriers {
    uint64_t full[STAGES], empty[STAGES];

    // By one thread, before a barrier of the block.
    __device__ __forceinline__ void init(uint32_t fillers, uint32_t readers) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], fillers);
            mbarrier_init(&empty[s], readers);
        }
        fence_proxy_async();
    }
};

// The first address from `smem` on at which a square may begin; launches have 1024 bytes for it.
__device__ __forceinline__ bf16* first_square(unsigned char* smem) {
    return reinterpret_cast<bf16*>(smem + (1024 - smem_u32(smem) % 1024) % 1024);
}
