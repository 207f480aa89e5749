// Choosing the next token from logits, one block a row: what src/infer/sampler.rs does, step by step
// (repetition penalty, top-k, temperature, top-p, min-p, draw; or the largest), and with its rule for
// ties: equal scores are ordered by id, lowest first.
//
// The CPU sorts candidates. Here nothing of the vocabulary's size is moved. Each candidate has a key,
// a 52-bit integer whose descending order is the wanted one and which no other candidate has: the
// float's bits, made monotone, above the id counted backwards. And it has a weight, a whole number:
// exp(score) in units of 2^-43, of which 2^20 candidates have less than 2^64. So every sum of weights
// is exact, whatever its order. All steps are then one question, `find`: walking the candidates in
// order, at which one does the sum of their weights reach a goal?
//   top-k: weights 1, goal k;  top-p: goal p of all;  draw: goal beyond u of what is left.
// `find` narrows the interval of keys that holds the answer:
//   while more than THREADS candidates lie in it:
//     cut it into 8; each thread sums weights and counts candidates of each part; add up the threads;
//     go on with the part in which the sum reaches the goal
//   gather the candidates of the interval, sort them, form running sums, take the first that reaches it
// An interval of few candidates, as top-k leaves it, is gathered and sorted once.
//
// The token is the CPU's, but where u falls within rounding of the border between two tokens: expf may
// differ in its last place, and weights below 2^-43 of the largest count as none.

#include "include/dtype.cuh"
#include "include/sample.h"
#include "include/scan.cuh"

namespace {

constexpr int THREADS = SAMPLE_THREADS;
constexpr int DIGIT_BITS = 3;
constexpr int DIGITS = 1 << DIGIT_BITS;
constexpr uint32_t LAST_ID = (1u << SAMPLE_ID_BITS) - 1;
constexpr int WEIGHT_BITS = 63 - SAMPLE_ID_BITS;

enum class Order { LOGIT, SCORE, ID };

struct Row {
    const float* logits;
    const uint8_t* seen;
    uint32_t vocab;
    float penalty;
    float temperature;
    // Largest penalised logit.
    float max;
    // Key by logit of the last candidate that top-k leaves; 0: all of them.
    uint64_t kth;
    // Key of the last candidate that top-p leaves; 0: all.
    uint64_t cut;
    // Lighter candidates count nothing.
    float min_p;
    // How many candidates there are.
    uint32_t n;
};

// Bits whose unsigned order is the order of numbers, -0 before 0.
__device__ __forceinline__ uint64_t monotone(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t key_of(float x, uint32_t id) {
    return monotone(x) << SAMPLE_ID_BITS | (LAST_ID - id);
}

__device__ __forceinline__ uint32_t id_of(uint64_t key, Order order) {
    return order == Order::ID ? uint32_t(LAST_ID + 1 - key) : LAST_ID - uint32_t(key & LAST_ID);
}

// The logit after the repetition penalty.
__device__ __forceinline__ float penalised(const Row& row, uint32_t id) {
    const float logit = row.logits[id];
    if (row.penalty == 1.f || !row.seen[id]) return logit;
    return logit < 0.f ? logit * row.penalty : logit / row.penalty;
}

// Distance to the largest, at most 0: it is subtracted first, so that a tiny temperature gives -inf.
__device__ __forceinline__ float score(const Row& row, float logit) {
    return (logit - row.max) / row.temperature;
}

// 0 for what is no candidate.
__device__ __forceinline__ uint64_t key(const Row& row, Order order, uint32_t id) {
    const float logit = penalised(row, id);
    const uint64_t by_logit = key_of(logit, id);
    if (!(logit > -INFINITY) || by_logit < row.kth) return 0;
    if (order == Order::LOGIT) return by_logit;
    return order == Order::SCORE ? key_of(score(row, logit), id) : LAST_ID + 1 - id;
}

__device__ __forceinline__ uint64_t weight(const Row& row, Order order, uint64_t key) {
    const float w = expf(score(row, penalised(row, id_of(key, order))));
    // A NaN fails the second comparison.
    if (key < row.cut || !(w >= row.min_p)) return 0;
    return uint64_t(w * float(1ull << WEIGHT_BITS));
}

// Sorted candidates: those of the interval [lo, lo + 2^bits) of an order's keys.
struct Window {
    uint64_t* keys;
    unsigned* n_keys;
    Order order;
    uint64_t lo;
    // Below 0: nothing is held.
    int bits;
    int held;
};

// Puts the interval's candidates, at most THREADS, into the window, in order.
__device__ __forceinline__ void gather(Window& window, const Row& row, Order order, uint64_t lo,
                                       int bits) {
    if (window.bits == bits && window.lo == lo && window.order == order) return;
    const int thread = int(threadIdx.x);
    __syncthreads();
    window.keys[thread] = 0;
    if (thread == 0) *window.n_keys = 0;
    __syncthreads();
#pragma unroll 4
    for (uint32_t id = threadIdx.x; id < row.vocab; id += THREADS) {
        const uint64_t k = key(row, order, id);
        if (k == 0 || k < lo || (k - lo) >> bits != 0) continue;
        // Which thread comes first is left open; sorting takes it away, as keys are distinct.
        const unsigned place = atomicAdd(window.n_keys, 1u);
        if (place < THREADS) window.keys[place] = k;
    }
    __syncthreads();
    const int held = *window.n_keys < THREADS ? int(*window.n_keys) : THREADS;
    int size = 2;
    while (size < held) size *= 2;
    // Bitonic (Batcher 1968), descending; empty places have key 0 and end behind.
    for (int run = 2; run <= size; run *= 2) {
        for (int distance = run / 2; distance > 0; distance /= 2) {
            const int other = thread ^ distance;
            if (other > thread && other < size) {
                const uint64_t a = window.keys[thread], b = window.keys[other];
                const bool descending = (thread & run) == 0;
                if (descending ? a < b : a > b) {
                    window.keys[thread] = b;
                    window.keys[other] = a;
                }
            }
            __syncthreads();
        }
    }
    window.order = order;
    window.lo = lo;
    window.bits = bits;
    window.held = held;
}

// Weight of all candidates.
__device__ __forceinline__ uint64_t total(Window& window, const Row& row, Order order, uint64_t lo,
                                          int bits) {
    uint64_t sum = 0;
    if (row.n <= THREADS) {
        gather(window, row, order, lo, bits);
        if (int(threadIdx.x) < window.held) sum = weight(row, order, window.keys[threadIdx.x]);
    } else {
#pragma unroll 4
        for (uint32_t id = threadIdx.x; id < row.vocab; id += THREADS) {
            const uint64_t k = key(row, order, id);
            if (k != 0) sum += weight(row, order, k);
        }
    }
    return block_reduce<THREADS>(sum, Plus());
}

// Sums of the parts of an interval, over the block.
struct Parts {
    uint64_t sum[THREADS / WARP][DIGITS];
    uint32_t n[THREADS / WARP][DIGITS];
};

// The key of the candidate at which the running sum of weights reaches `goal`, at least 1 and at most
// the sum of all; COUNT: all weights are 1. All keys are in [lo, lo + 2^bits) or may be passed over.
template <bool COUNT>
__device__ __forceinline__ uint64_t find(Window& window, Parts& parts, const Row& row, Order order,
                                         uint64_t goal, uint64_t lo, int bits) {
    uint32_t n = row.n;
    while (n > THREADS) {
        const int shift = bits > DIGIT_BITS ? bits - DIGIT_BITS : 0;
        uint64_t sums[DIGITS] = {};
        uint32_t counts[DIGITS] = {};
#pragma unroll 4
        for (uint32_t id = threadIdx.x; id < row.vocab; id += THREADS) {
            const uint64_t k = key(row, order, id);
            if (k == 0 || k < lo || (k - lo) >> bits != 0) continue;
            const uint64_t w = COUNT ? 1 : weight(row, order, k);
            const int digit = int((k - lo) >> shift);
#pragma unroll
            for (int d = 0; d < DIGITS; ++d) {
                sums[d] += d == digit ? w : 0;
                counts[d] += d == digit;
            }
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DIGITS; ++d) {
            const uint64_t sum = warp_reduce(sums[d], Plus());
            const uint32_t count = warp_reduce(counts[d], Plus());
            if (lane_id() == 0) parts.sum[warp_id()][d] = sum, parts.n[warp_id()][d] = count;
        }
        __syncthreads();
        if (threadIdx.x < DIGITS) {
            for (int w = 1; w < THREADS / WARP; ++w) {
                parts.sum[0][threadIdx.x] += parts.sum[w][threadIdx.x];
                parts.n[0][threadIdx.x] += parts.n[w][threadIdx.x];
            }
        }
        __syncthreads();
        int part = DIGITS - 1;
        while (part > 0 && parts.sum[0][part] < goal) goal -= parts.sum[0][part--];
        lo += uint64_t(part) << shift;
        bits = shift;
        n = parts.n[0][part];
    }
    gather(window, row, order, lo, bits);
    const int thread = int(threadIdx.x);
    uint64_t w = 0;
    if (thread < window.held) w = COUNT ? 1 : weight(row, order, window.keys[thread]);
    const uint64_t sum = block_prefix<THREADS>(w);
    const int first = block_reduce<THREADS>(sum >= goal ? thread : THREADS, Smaller());
    return first < window.held ? window.keys[first] : 0;
}

__device__ __forceinline__ int bit_length(uint64_t x) {
    int bits = 0;
    while (bits < 64 && x >> bits != 0) ++bits;
    return bits;
}

// The token, by the settings of `own`; `best` is the largest key by logit, and `floor` one that at
// least THREADS candidates reach, or 0.
__device__ __forceinline__ uint32_t draw(Window& window, Parts& parts, Row& row,
                                         const SampleRow& own, uint64_t best, uint64_t floor) {
    row.max = penalised(row, id_of(best, Order::LOGIT));
    const bool by_k = own.top_k > 0 && own.top_k < row.n;
    if (by_k) {
        const uint64_t lo = own.top_k <= THREADS ? floor : 0;
        row.kth = find<true>(window, parts, row, Order::LOGIT, own.top_k, lo, bit_length(best - lo));
        row.n = own.top_k;
        window.bits = -1;
    }
    // The CPU draws from its candidates in the order that they have come to.
    const bool by_p = own.top_p < 1.f;
    const Order order = by_p ? Order::SCORE : by_k ? Order::LOGIT : Order::ID;
    const uint64_t lo = order == Order::SCORE  ? 0
                        : order == Order::LOGIT ? row.kth
                                                : LAST_ID + 2 - row.vocab;
    const uint64_t top = order == Order::SCORE  ? key_of(0.f, 0)
                         : order == Order::LOGIT ? best
                                                 : LAST_ID + 1;
    const int bits = bit_length(top - lo);
    if (by_p) {
        const double all = double(total(window, row, order, lo, bits));
        // A candidate stays while the sum before it is below p of all.
        const uint64_t goal = uint64_t(ceil(double(own.top_p) * all));
        row.cut = find<false>(window, parts, row, order, goal > 0 ? goal : 1, lo, bits);
    }
    row.min_p = own.min_p;
    const uint64_t left = total(window, row, order, lo, bits);
    if (left == 0) return SAMPLE_NOTHING_LEFT;
    // The first candidate with a sum beyond u of what is left; rounding may lead to all of it.
    const uint64_t target = uint64_t(own.uniform * double(left));
    const uint64_t goal = target < left ? target + 1 : left;
    const uint64_t found = find<false>(window, parts, row, order, goal, lo, bits);
    return found == 0 ? SAMPLE_NOTHING_LEFT : id_of(found, order);
}

}  // namespace

// tokens: [rows] ids or what include/sample.h puts in their place; logits: [rows, vocab] f32; seen:
// [rows, vocab], 1 for ids of prompt and output, read for rows with a penalty only.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_f32(uint32_t* tokens, const float* logits, const uint8_t* seen, SampleParams p) {
    __shared__ uint64_t keys[THREADS];
    __shared__ unsigned n_keys;
    __shared__ Parts parts;
    const size_t start = size_t(blockIdx.x) * p.vocab;
    const SampleRow own = p.rows[blockIdx.x];
    const bool greedy = own.temperature == 0.f;
    const bool penalty = own.repetition_penalty != 1.f;
    Row row = {logits + start, penalty ? seen + start : nullptr, p.vocab, own.repetition_penalty,
               own.temperature};

    uint32_t bad = p.vocab;
    uint64_t largest = 0;
#pragma unroll 4
    for (uint32_t id = threadIdx.x; id < p.vocab; id += THREADS) {
        if (!(row.logits[id] < INFINITY) && id < bad) bad = id;
        float logit = penalised(row, id);
        if (!(logit > -INFINITY)) continue;
        // The largest is found by comparing numbers, where -0 is 0.
        if (greedy) logit += 0.f;
        const uint64_t k = key_of(logit, id);
        largest = k > largest ? k : largest;
        row.n += 1;
    }
    bad = block_reduce<THREADS>(bad, Smaller());
    row.n = block_reduce<THREADS>(row.n, Plus());
    const uint64_t best = block_reduce<THREADS>(largest, Larger());
    // Each thread's largest is at least this.
    const uint64_t floor = block_reduce<THREADS>(largest, Smaller());

    uint32_t token = SAMPLE_NOTHING_LEFT;
    if (bad < p.vocab) {
        token = SAMPLE_BAD_LOGIT | bad;
    } else if (best != 0 && greedy) {
        token = id_of(best, Order::LOGIT);
    } else if (best != 0) {
        Window window = {keys, &n_keys, Order::ID, 0, -1, 0};
        token = draw(window, parts, row, own, best, floor);
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
PUNA_KERNEL(sample_f32)

// seen[row, tokens[row]] = 1; seen: [rows, vocab], tokens: [rows]. What is no id is passed over.
extern "C" __global__ void __launch_bounds__(SAMPLE_OBSERVE_THREADS)
    sample_observe(uint8_t* seen, const uint32_t* tokens, SampleObserveParams p) {
    const uint32_t row = blockIdx.x * SAMPLE_OBSERVE_THREADS + threadIdx.x;
    if (row < p.rows && tokens[row] < p.vocab) seen[size_t(row) * p.vocab + tokens[row]] = 1;
}
PUNA_KERNEL(sample_observe)
