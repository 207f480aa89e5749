// Causal attention inside packed sequences, forward, by the products of warp groups: what
// flash_fwd.cu computes, for heads of 64 and 128.
//   s[i, j] = scale q[i, h] . k[j, h / group]     over the keys j of i's sequence with
//                                                 i - window < j <= i
//   lse[h, i] = ln(sum over j of exp(s[i, j]))
//   out[i, h] = sum over j of exp(s[i, j] - lse[h, i]) v[j, h / group]
//
// out, q: [t, n_heads, HD] bf16; k, v: [t, n_kv_heads, HD] bf16; lse: [n_heads, t] f32; q, k and v
// as maps for boxes of 64 columns. Scores, exponentials and sums are f32; exponentials are rounded
// to bf16 where they meet values. Overwrites.
//
// A block has ROWS queries of one head and goes over the keys that they see in steps of as many,
// counted from the start of the sequence, so a sequence has the same bits whatever it is packed
// with (but not those of flash_fwd.cu, whose steps are shorter).
//
//   one warp        copies queries, then keys and values of step after step, as places become free
//   two warp groups 64 queries each:  s_0 = q k_0^T;  p_0 = softmax
//                                     for each further step j, both started at once:
//                                       s_j = q k_j^T     o += p_(j-1) v_(j-1)
//                                       p_j = softmax(s_j), while the latter is under way
//                                     o += p_last v_last
//
// The groups take turns at starting products, so that one has its softmax while the other has the
// tensor cores.
//
// Source: Dao 2023 (arXiv 2307.08691), algorithm 1; Shah et al. 2024 (arXiv 2407.08608), sections 3.1
// and 3.2.

#include "include/flash.cuh"
#include "include/wgmma.cuh"

namespace {

constexpr int ROWS = FLASH_GROUP_ROWS, STAGES = FLASH_GROUP_STAGES;
constexpr int SQUARE = square_size(ROWS);
constexpr int GROUPS = ROWS / 64, READERS = GROUPS * GROUP / WARP;
// Registers of a thread that copies and of one that computes: what 384 threads of 168 have.
constexpr int FEW_REGISTERS = 40, MANY_REGISTERS = 232;
static_assert(FLASH_GROUP_THREADS == (1 + GROUPS) * GROUP, "one warp group copies");
static_assert(GROUPS == 2, "two take turns");
static_assert(GROUP * FEW_REGISTERS + GROUPS * GROUP * MANY_REGISTERS == FLASH_GROUP_THREADS * 168,
              "as many are taken as are given");

// Named barriers: the first of the groups' turns, and of their own.
constexpr int TURN = 1, OWN = TURN + GROUPS;

using Ring = RingAt<STAGES>;

struct Barriers {
    RingBarriers<STAGES> k, v;
    // The queries have landed; so have the values of a step that the sequence ends in.
    uint64_t q, tail;
};

// Rows from `row` on of a head whose columns begin at `col`, as HD / 64 squares.
template <int HD>
__device__ __forceinline__ void copy_rows(bf16* to, const TensorMap& map, int row, int col,
                                          uint64_t* full) {
    mbarrier_arrive_expect(full, ROWS * HD * 2);
#pragma unroll
    for (int c = 0; c < HD / BOX_COLS; ++c) {
        copy_box(to + c * SQUARE, map, row, col + c * BOX_COLS, full);
    }
}

// The copying warp. Boxes know nothing of sequences: behind the end of one they have rows of the
// next. Keys there are hidden from every query that is stored. But values there, which may be
// anything, are multiplied by zero: the warp replaces them by zeroes.
template <int HD>
__device__ __forceinline__ void produce(bf16* qs, bf16* ks, bf16* vs, Barriers& barriers,
                                        const TensorMap& q, const TensorMap& k, const TensorMap& v,
                                        const FlashTile& tile, int begin, int end, int head,
                                        int kv_head) {
    const bool one = lane_id() == 0;
    const int start = int(tile.start), len = int(tile.len);
    if (one) copy_rows<HD>(qs, q, start + int(tile.first), head * HD, &barriers.q);
    Ring at;
    for (int key = begin; key < end; key += ROWS) {
        bf16* const to = vs + at.slot * ROWS * HD;
        if (one) {
            mbarrier_wait(&barriers.k.empty[at.slot], at.round ^ 1);
            copy_rows<HD>(ks + at.slot * ROWS * HD, k, start + key, kv_head * HD,
                          &barriers.k.full[at.slot]);
            mbarrier_wait(&barriers.v.empty[at.slot], at.round ^ 1);
            copy_rows<HD>(to, v, start + key, kv_head * HD,
                          key + ROWS <= len ? &barriers.v.full[at.slot] : &barriers.tail);
        }
        if (key + ROWS > len) {
            // Only the last step can be one.
            mbarrier_wait(&barriers.tail, 0);
            const int rows = len - key, chunks = (ROWS - rows) * (BOX_COLS / CHUNK);
            for (int i = lane_id(); i < HD / BOX_COLS * chunks; i += WARP) {
                // A whole row of a square is what it is in any permutation.
                bf16* const row = to + i / chunks * SQUARE + square_size(rows);
                Pack<uint32_t, 4>{}.store(
                    reinterpret_cast<uint32_t*>(row + i % chunks * CHUNK));
            }
            fence_proxy_async();
            __syncwarp();
            if (one) mbarrier_arrive(&barriers.v.full[at.slot]);
        }
        at.next();
    }
}

// One warp group's 64 queries. NT: keys of a step in eights.
template <int HD> struct Consumer {
    static constexpr int NT = ROWS / 8;
    float s[ROWS / 2], o[HD / 2], m[2], l[2];
    // The exponentials of a step as factors.
    uint32_t p[ROWS / 16][4];

    __device__ __forceinline__ float (&scores())[NT][4] {
        return reinterpret_cast<float(&)[NT][4]>(s);
    }
    __device__ __forceinline__ float (&sums())[HD / 8][4] {
        return reinterpret_cast<float(&)[HD / 8][4]>(o);
    }

    // Starts s = q k^T. `q`: the group's first row in the first square.
    __device__ __forceinline__ void start_scores(const bf16* q, const bf16* k) {
        const uint64_t a = wgmma_inputs_along(q), b = wgmma_inputs_along(k);
#pragma unroll
        for (int i = 0; i < HD / 16; ++i) {
            constexpr int PER_SQUARE = BOX_COLS / 16;
            const uint64_t step = uint64_t(i / PER_SQUARE * (SQUARE * 2 >> 4)) +
                                  i % PER_SQUARE * NEXT_16<false>;
            wgmma<ROWS, false, false>(s, a + step, b + step, i > 0);
        }
        wgmma_commit();
    }

    // Starts o += p v.
    __device__ __forceinline__ void start_sums(const bf16* v) {
        const uint64_t b = wgmma_inputs_across(v, SQUARE * 2);
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) {
            wgmma<HD, true>(o, p[i], b + i * NEXT_16<true>, true);
        }
        wgmma_commit();
    }

    // Exponentials of the scores of keys `key`.., for queries from the warp's `first` on.
    __device__ __forceinline__ void soften_step(int first, int key, uint32_t window, float c,
                                                float (&keep)[2]) {
        const int last = first + 15;
        const bool whole = key + ROWS - 1 <= first && uint32_t(last - key) < window;
        const int pos[2] = {first + acc_row(0), first + acc_row(2)};
        if (!whole) hide(scores(), pos, key, window);
        soften(scores(), m, l, keep, c);
    }

    __device__ __forceinline__ void pack() {
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) {
            acc_to_a(p[i], scores()[2 * i], scores()[2 * i + 1]);
        }
    }
};

template <int HD>
__device__ __forceinline__ void consume(bf16* out, float* lse, bf16* qs, const bf16* ks,
                                        const bf16* vs, Barriers& barriers, const FlashTile& tile,
                                        const FlashParams& p, int begin, int end, uint32_t head,
                                        int group) {
    const int warp_row = group * 64 + warp_id() % 4 * 16;
    const int first = int(tile.first) + warp_row;
    const float c = p.scale * LOG2_E;
    const bf16* const q = qs + square_size(group * 64);
    const bool one = lane_id() == 0;
    const int mine = TURN + group, others = TURN + 1 - group;
    Consumer<HD> x;
    x.m[0] = x.m[1] = -INFINITY;
    x.l[0] = x.l[1] = 0.f;
#pragma unroll
    for (int i = 0; i < HD / 2; ++i) x.o[i] = 0.f;

    // Group 0 begins.
    if (group == 1) named_arrive(others, GROUPS * GROUP);
    Ring at_k, at_v;
    float keep[2];
    mbarrier_wait(&barriers.q, 0);
    mbarrier_wait(&barriers.k.full[0], 0);
    named_sync(mine, GROUPS * GROUP);
    hold(x.s);
    wgmma_fence();
    x.start_scores(q, ks);
    named_arrive(others, GROUPS * GROUP);
    wgmma_wait<0>();
    hold(x.s);
    if (one) mbarrier_arrive(&barriers.k.empty[0]);
    at_k.next();
    x.soften_step(first, begin, p.window, c, keep);
    x.pack();
    for (int key = begin + ROWS; key < end; key += ROWS) {
        mbarrier_wait(&barriers.k.full[at_k.slot], at_k.round);
        mbarrier_wait(&barriers.v.full[at_v.slot], at_v.round);
        named_sync(mine, GROUPS * GROUP);
        hold(x.s);
        hold(x.o);
        wgmma_fence();
        x.start_scores(q, ks + at_k.slot * ROWS * HD);
        x.start_sums(vs + at_v.slot * ROWS * HD);
        named_arrive(others, GROUPS * GROUP);
        wgmma_wait<1>();
        hold(x.s);
        if (one) mbarrier_arrive(&barriers.k.empty[at_k.slot]);
        at_k.next();
        x.soften_step(first, key, p.window, c, keep);
        wgmma_wait<0>();
        hold(x.o);
        if (one) mbarrier_arrive(&barriers.v.empty[at_v.slot]);
        at_v.next();
        scale_rows(x.sums(), keep);
        x.pack();
    }
    mbarrier_wait(&barriers.v.full[at_v.slot], at_v.round);
    hold(x.o);
    wgmma_fence();
    x.start_sums(vs + at_v.slot * ROWS * HD);
    wgmma_wait<0>();
    hold(x.o);
    // As many waits as arrivals.
    if (group == 0) named_sync(mine, GROUPS * GROUP);

    // The group's own queries in shared memory make room for its results, which leave in rows. All
    // of its warps have read them.
    named_sync(OWN + group, GROUP);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + acc_row(2 * half), pos = int(tile.first) + row;
        const float sum = quad_sum(x.l[half]);
        // Rows behind the last query are not written, whatever they are.
        const float factor = sum > 0.f ? 1.f / sum : sum;
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
            const float* const pair = x.sums()[n] + 2 * half;
            const uint32_t bits = pack_bf16(pair[0] * factor, pair[1] * factor);
            Pack<bf16, 2> packed;
            memcpy(&packed, &bits, sizeof bits);
            packed.store(qs + n / 8 * SQUARE + swizzled<BOX_COLS>(row, n % 8 * 8 + acc_col(0)));
        }
        if (pos < end && lane_id() % 4 == 0) {
            lse[size_t(head) * p.t + tile.start + pos] = fmaf(x.m[half], p.scale, logf(sum));
        }
    }
    __syncwarp();
    const HeadRows<bf16> out_rows(out, tile, p.n_heads, head, HD);
    constexpr int CHUNKS = HD / CHUNK;
    for (int i = lane_id(); i < 16 * CHUNKS; i += WARP) {
        const int row = warp_row + i / CHUNKS, col = i % CHUNKS * CHUNK;
        const int pos = int(tile.first) + row;
        if (pos >= end) continue;
        const bf16* const from =
            qs + col / BOX_COLS * SQUARE + swizzled<BOX_COLS>(row, col % BOX_COLS);
        Pack<bf16, CHUNK>::load(from).store(out_rows.row(pos) + col);
    }
}

template <int HD>
__device__ __forceinline__ void flash_fwd(bf16* out, float* lse, const TensorMap& q,
                                          const TensorMap& k, const TensorMap& v,
                                          const FlashTile* tiles, const FlashParams& p) {
    DYN_SMEM(smem);
    __shared__ Barriers barriers;
    bf16* const qs = first_square(smem);        // [ROWS, HD], HD / 64 squares
    bf16* const ks = qs + ROWS * HD;            // STAGES of them
    bf16* const vs = ks + STAGES * ROWS * HD;   // STAGES of them
    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);
    const FlashTile tile = tiles[blockIdx.y];
    const int first = int(tile.first), end = min(int(tile.len), first + ROWS);
    const int begin = first_key(first, p.window) / ROWS * ROWS;
    if (threadIdx.x == 0) {
        prefetch_map(q);
        prefetch_map(k);
        prefetch_map(v);
        barriers.k.init(1, READERS);
        barriers.v.init(1, READERS);
        mbarrier_init(&barriers.q, 1);
        mbarrier_init(&barriers.tail, 1);
        fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        registers_down_to<FEW_REGISTERS>();
        if (threadIdx.x < WARP) {
            produce<HD>(qs, ks, vs, barriers, q, k, v, tile, begin, end, int(head), int(kv_head));
        }
        return;
    }
    registers_up_to<MANY_REGISTERS>();
    consume<HD>(out, lse, qs, ks, vs, barriers, tile, p, begin, end, head,
                int(threadIdx.x) / GROUP - 1);
}

}  // namespace

#define FLASH_FWD(name, hd)                                                                        \
    extern "C" __global__ void __launch_bounds__(FLASH_GROUP_THREADS, 1)                           \
        name(bf16* out, float* lse, const __grid_constant__ TensorMap q,                           \
             const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,             \
             const FlashTile* tiles, FlashParams p) {                                              \
        flash_fwd<hd>(out, lse, q, k, v, tiles, p);                                                \
    }                                                                                              \
    PUNA_KERNEL(name)

FLASH_FWD(flash_fwd_bf16_64_wgmma, 64)
FLASH_FWD(flash_fwd_bf16_128_wgmma, 128)
