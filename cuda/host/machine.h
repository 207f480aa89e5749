// The runtime's own view: one launch at a time, one block at a time, one fiber a CUDA thread, all in
// the calling OS thread. Nothing here is seen by kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define PUNA_ASAN 1
#else
#define PUNA_ASAN 0
#endif

namespace puna_host {

struct Place {
    const char* file = nullptr;
    int line = 0;
};

struct Copy {
    void* to;
    const void* from;
    int bytes, valid;
};

// AtPhase: at a barrier in shared memory.
enum class State { Ready, AtBarrier, AtWarpOp, AtPhase, AtNamed, Done };

struct Fiber {
    char* stack = nullptr;      // lowest usable address
    void* stack_pointer = nullptr;
    void* fake_stack = nullptr;  // AddressSanitizer's
    uint3 thread{};
    int id = 0;
    State state = State::Ready;
    // Where the thread waits, or waited last.
    Place place;
    int vote = 0, votes = 0;
    uint32_t mask = 0;
    WarpFn fn = nullptr;
    void* arg = nullptr;
    std::vector<Copy> open_group;
    std::deque<std::vector<Copy>> groups;
    // The phase, or the use of a named barrier, that the thread waits for.
    const uint64_t* barrier = nullptr;
    uint32_t parity = 0;
    int named = 0;
    uint32_t generation = 0;
    // Barriers that it made, and whether it wrote shared memory, since its last fence_proxy_async.
    std::vector<uint64_t*> made;
    bool unfenced = false;
};

// How threads take turns. Each finds other mistakes: what only works because one thread happens to
// run before another shows when it runs after.
enum class Order { Up, Down, Random, WarpUp, WarpDown };

struct Machine {
    std::vector<Fiber> fibers;
    Fiber* current = nullptr;
    Kernel kernel = nullptr;
    Caller caller = nullptr;
    void** args = nullptr;
    Order order = Order::Up;
    bool copies_land_at_once = false;
    char* dynamic_shared = nullptr;
    size_t dynamic_bytes = 0;
    uint32_t block = 0;
    uint32_t random = 1;
    // The launch's first error; empty while there is none.
    std::string error;
};
extern Machine machine;

// ---- fiber.cpp ----
void prepare_fiber(Fiber& fiber);
// Runs a fiber until it waits, ends or fails.
void resume(Fiber& fiber);
// Back to the scheduler, from a fiber.
void to_scheduler();
void set_fiber_count(size_t n);
// The current fiber's stack, for accesses that concern nobody else.
bool on_own_stack(const void* p);

// ---- schedule.cpp ----
void run_block();
// "block 3 thread 17, last at file:line".
std::string where(const Fiber& fiber);
// Notes the first error and leaves the fiber for good.
[[noreturn]] void fail(const std::string& what);

// ---- memory.cpp ----
// Room for `bytes`, filled with NaN (0xff), between two guards; `shared`: the block's own memory.
char* allocate(size_t bytes, bool shared);
bool release(void* p);
// Names the buffer whose guard was written, or is empty.
std::string broken_guard();
// Fills static and dynamic shared memory with 0xff.
void clear_shared();
bool is_shared(const void* p, size_t bytes);
// AddressSanitizer's finding since the last call, shortened; empty when there is none.
std::string address_finding();

// ---- bulk.cpp ----
// Whether a fiber is ready, or what it waits for has come.
bool can_go_on(const Fiber& fiber);
size_t boxes_under_way();
void land_box(size_t which);
void bulk_block_begins();

// ---- warp_group.cpp ----
void groups_block_begins();
std::string groups_block_ends();

// ---- race.cpp: only where kernels are compiled with -fsanitize=thread ----
void watch(char* first, size_t bytes, size_t guard, bool shared);
void unwatch(const char* first);
// An asynchronous copy to these bytes of shared memory begins, or was waited for.
void note_in_flight(const void* p, size_t bytes, bool begins);
void race_launch_begins();
void race_block_begins();
void race_barrier();
void race_warp_synced(int warp);

}  // namespace puna_host
