// Barriers in shared memory, named barriers, and bulk copies that complete transactions at them.
#include <cstring>
#include <string>

#include "hopper.h"
#include "machine.h"

namespace puna_host {

namespace {

// ---- barriers in shared memory ----

// What the eight bytes of a barrier hold here. Memory that nobody initialised has the top bit set.
struct Phase {
    uint64_t pending : 20, arrivals : 20;
    int64_t bytes : 21;
    uint64_t parity : 1, fenced : 1, unmade : 1;
};
static_assert(sizeof(Phase) == 8, "one word");

Phase phase_of(const uint64_t* barrier, const char* file, int line) {
    check_aligned(barrier, 8, file, line);
    if (!is_shared(barrier, 8)) fail_at("a barrier outside of shared memory", file, line);
    Phase phase;
    memcpy(&phase, barrier, 8);
    if (phase.unmade) fail_at("a barrier that was not initialised", file, line);
    return phase;
}

void set_phase(uint64_t* barrier, Phase phase) {
    if (phase.pending == 0 && phase.bytes == 0) {
        phase.parity ^= 1;
        phase.pending = phase.arrivals;
        // More than it orders: the race check misses what only the end of a phase in between
        // seems to order.
        race_barrier();
    }
    memcpy(barrier, &phase, 8);
}

// ---- bulk copies ----

// What lies within a map's matrix lies within its buffer: src/cuda/tensor_map.rs.

// A map's words.
enum { ADDRESS, ROWS, COLS, STRIDE, BOX_ROWS, MADE, WORDS };
constexpr uint64_t MADE_HERE = 0x50756e614d6170;
constexpr int ROW_BYTES = 128, SQUARE_COLS = ROW_BYTES / 2;

struct Box {
    char* to;
    uint64_t map[WORDS];
    int row, col;
    uint64_t* barrier;
};
std::deque<Box> boxes;

void land(const Box& box) {
    const auto* from = reinterpret_cast<const uint16_t*>(box.map[ADDRESS]);
    const int64_t rows = int64_t(box.map[ROWS]), cols = int64_t(box.map[COLS]);
    const uint32_t first = shared_window(box.to);
    for (int r = 0; r < int(box.map[BOX_ROWS]); ++r) {
        const int64_t row = int64_t(box.row) + r;
        for (int c = 0; c < SQUARE_COLS; ++c) {
            const int64_t col = int64_t(box.col) + c;
            uint16_t value = 0;
            if (row >= 0 && row < rows && col >= 0 && col < cols) {
                value = from[row * int64_t(box.map[STRIDE]) + col];
            }
            // The 128-byte mode.
            const uint32_t plain = first + uint32_t(r * ROW_BYTES + c * 2);
            const uint32_t at = plain ^ (plain >> 7 & 7) << 4;
            memcpy(box.to + (at - first), &value, 2);
        }
    }
    Phase phase;
    memcpy(&phase, box.barrier, 8);
    phase.bytes -= int64_t(box.map[BOX_ROWS]) * ROW_BYTES;
    set_phase(box.barrier, phase);
}

// ---- named barriers ----

struct Named {
    int arrived = 0, threads = 0;
    uint32_t generation = 0;
};
Named named[16];

}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const char* file, int line) {
    check_aligned(barrier, 8, file, line);
    if (!is_shared(barrier, 8)) fail_at("a barrier outside of shared memory", file, line);
    if (arrivals == 0 || arrivals >= 1u << 20) fail_at("a barrier of no arrivals", file, line);
    Phase phase{};
    phase.pending = phase.arrivals = arrivals;
    memcpy(barrier, &phase, 8);
    machine.current->made.push_back(barrier);
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, const char* file, int line) {
    Phase phase = phase_of(barrier, file, line);
    if (machine.current->unfenced) {
        fail_at("an arrival of a thread that wrote shared memory, without fence_proxy_async", file,
                line);
    }
    if (phase.pending == 0) fail_at("more arrivals than the barrier was made for", file, line);
    phase.bytes += expected_bytes;
    --phase.pending;
    set_phase(barrier, phase);
}

bool phase_ended(const uint64_t* barrier, uint32_t parity) {
    Phase phase;
    memcpy(&phase, barrier, 8);
    return phase.parity != parity;
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity, const char* file, int line) {
    Fiber& self = *machine.current;
    phase_of(barrier, file, line);
    if (parity > 1) fail_at("a parity that is neither 0 nor 1", file, line);
    self.place = {file, line};
    if (phase_ended(barrier, parity)) return;
    self.barrier = barrier;
    self.parity = parity;
    self.state = State::AtPhase;
    to_scheduler();
}

void fence_proxy_async() {
    Fiber& self = *machine.current;
    self.unfenced = false;
    for (uint64_t* barrier : self.made) {
        Phase phase;
        memcpy(&phase, barrier, 8);
        phase.fenced = 1;
        memcpy(barrier, &phase, 8);
    }
    self.made.clear();
}

void named_barrier(int id, int threads, bool waits, const char* file, int line) {
    Fiber& self = *machine.current;
    self.place = {file, line};
    Named& barrier = named[id];
    if (barrier.arrived == 0) barrier.threads = threads;
    if (barrier.threads != threads || threads % 32 != 0) {
        fail_at("a named barrier of another number of threads", file, line);
    }
    const uint32_t generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        race_barrier();
    } else if (waits) {
        self.named = id;
        self.generation = generation;
        self.state = State::AtNamed;
        to_scheduler();
    }
}

bool can_go_on(const Fiber& fiber) {
    switch (fiber.state) {
        case State::Ready: return true;
        case State::AtPhase: return phase_ended(fiber.barrier, fiber.parity);
        case State::AtNamed: return named[fiber.named].generation != fiber.generation;
        default: return false;
    }
}

void copy_box(void* to, const uint64_t* map, int row, int col, uint64_t* barrier, const char* file,
              int line) {
    machine.current->place = {file, line};
    Box box{static_cast<char*>(to), {}, row, col, barrier};
    memcpy(box.map, map, sizeof box.map);
    if (box.map[MADE] != MADE_HERE) fail_at("a tensor map that is none", file, line);
    if (!phase_of(barrier, file, line).fenced) {
        fail_at("a bulk copy at a barrier that was made without fence_proxy_async", file, line);
    }
    const size_t bytes = size_t(box.map[BOX_ROWS]) * ROW_BYTES;
    if (!is_shared(to, bytes)) fail_at("a bulk copy outside of shared memory", file, line);
    if (shared_window(to) % 1024 != 0) {
        fail_at("a bulk copy to an address that is no multiple of 1024", file, line);
    }
    if (machine.copies_land_at_once) return land(box);
    memset(to, 0xff, bytes);
    boxes.push_back(box);
}

size_t boxes_under_way() { return boxes.size(); }

void land_box(size_t which) {
    const Box box = boxes[which];
    boxes.erase(boxes.begin() + long(which));
    land(box);
}

void bulk_block_begins() {
    boxes.clear();
    for (Named& barrier : named) barrier = {};
}

}  // namespace puna_host

// Fills in a map of 16 words: bf16 [rows, cols], rows `stride` apart, boxes of `box_rows` rows.
extern "C" void puna_host_tensor_map(uint64_t* map, uint64_t address, uint64_t rows, uint64_t cols,
                                     uint64_t stride, uint64_t box_rows) {
    using namespace puna_host;
    map[ADDRESS] = address;
    map[ROWS] = rows;
    map[COLS] = cols;
    map[STRIDE] = stride;
    map[BOX_ROWS] = box_rows;
    map[MADE] = MADE_HERE;
}
