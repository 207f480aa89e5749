// The scheduler of one block's threads, and the entry of a launch, in the form of cuLaunchKernel.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "machine.h"

namespace puna_host {

namespace {

struct Entry {
    Kernel kernel;
    Caller caller;
    std::vector<size_t> arg_sizes;
    // Of compute capability 9.0 alone.
    bool sm90a;
};

// Kernels register while the program starts, in no certain order: made on first use.
std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> all;
    return all;
}

// One launch at a time in the whole process; also taken to allocate and free.
std::mutex one_at_a_time;

uint32_t next_random() {
    machine.random = machine.random * 1664525 + 1013904223;  // Numerical Recipes, section 7.1
    return machine.random >> 8;
}

std::vector<size_t> turns(size_t n) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t(0));
    if (machine.order == Order::Down || machine.order == Order::WarpDown) {
        std::reverse(order.begin(), order.end());
    }
    return order;
}

void shuffle_turns(std::vector<size_t>& order) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
}

// The end of the run of threads from `first` on that belong to one warp.
size_t end_of_warp(const std::vector<size_t>& order, size_t first) {
    size_t end = first + 1;
    while (end < order.size() && order[end] / 32 == order[first] / 32) ++end;
    return end;
}

// Whether all have ended, or an error was noted; opens the barrier when all stand at it.
bool settle(bool any_ran) {
    auto& fibers = machine.fibers;
    size_t waiting = 0, done = 0;
    const Fiber* first = nullptr;
    int votes = 0;
    for (const Fiber& fiber : fibers) {
        done += fiber.state == State::Done;
        if (fiber.state != State::AtBarrier) continue;
        ++waiting;
        votes += fiber.vote;
        if (first == nullptr) first = &fiber;
    }
    if (done == fibers.size()) return true;
    if (waiting + done == fibers.size()) {
        if (done > 0) {
            machine.error = "a barrier that " + std::to_string(done) +
                            " threads of the block never reach, having ended: " + where(*first);
            return true;
        }
        for (const Fiber& fiber : fibers) {
            if (fiber.place.line != first->place.line ||
                strcmp(fiber.place.file, first->place.file) != 0) {
                machine.error =
                    "threads wait at different barriers: " + where(*first) + "; " + where(fiber);
                return true;
            }
        }
        race_barrier();
        for (Fiber& fiber : fibers) {
            fiber.votes = votes;
            fiber.state = State::Ready;
        }
        return false;
    }
    if (any_ran) return false;
    if (const size_t n = boxes_under_way()) {
        const bool newest = machine.order == Order::Down || machine.order == Order::WarpDown;
        land_box(machine.order == Order::Random ? next_random() % n : newest ? n - 1 : 0);
        return false;
    }
    const auto stuck = [&fibers](State state, const char* what) {
        for (const Fiber& fiber : fibers) {
            if (fiber.state != state || !machine.error.empty()) continue;
            machine.error = what + where(fiber);
        }
    };
    stuck(State::AtWarpOp, "a warp operation that not all lanes of its mask reach: ");
    stuck(State::AtPhase, "a phase of a barrier that never ends: ");
    stuck(State::AtNamed, "a named barrier that not all threads reach: ");
    return true;
}

bool failed() {
    if (machine.error.empty()) machine.error = address_finding();
    return !machine.error.empty();
}

const char* bad_shape(const uint32_t grid[3], const uint32_t block[3], size_t shared_bytes) {
    // Limits of every compute capability from 8.0 to 12.0 (CUDA programming guide, appendix
    // "Compute Capabilities"), of shared memory the largest one's.
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (threads == 0 || threads > 1024 || block[2] > 64) return "a block of 1 to 1024 threads";
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return "a grid that is not empty";
    if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) {
        return "a grid of at most [2^31 - 1, 65535, 65535] blocks";
    }
    if (shared_bytes > 227 * 1024) return "at most 227 KiB of dynamic shared memory";
    return nullptr;
}

void run_grid(const uint32_t grid[3]) {
    machine.block = 0;
    for (uint32_t z = 0; z < grid[2]; ++z) {
        for (uint32_t y = 0; y < grid[1]; ++y) {
            for (uint32_t x = 0; x < grid[0]; ++x, ++machine.block) {
                blockIdx = {x, y, z};
                clear_shared();
                run_block();
                if (failed()) return;
            }
        }
    }
}

}  // namespace

void add_kernel(const char* name, Kernel kernel, Caller caller, const size_t* arg_sizes,
                bool sm90a) {
    std::vector<size_t> sizes;
    for (; *arg_sizes != 0; ++arg_sizes) sizes.push_back(*arg_sizes);
    if (!kernels().emplace(name, Entry{kernel, caller, sizes, sm90a}).second) {
        fprintf(stderr, "two kernels are called %s\n", name);
        abort();
    }
}

std::string where(const Fiber& fiber) {
    std::string text =
        "block " + std::to_string(machine.block) + " thread " + std::to_string(fiber.id);
    if (fiber.place.file != nullptr) {
        text += " at " + std::string(fiber.place.file) + ":" + std::to_string(fiber.place.line);
    }
    return text;
}

void fail(const std::string& what) {
    if (machine.error.empty()) machine.error = what;
    to_scheduler();
    abort();  // nobody resumes a fiber after an error
}

void run_block() {
    auto& fibers = machine.fibers;
    for (size_t i = 0; i < fibers.size(); ++i) {
        const unsigned id = unsigned(i), x = blockDim.x, y = blockDim.y;
        fibers[i].id = int(i);
        fibers[i].thread = {id % x, id / x % y, id / (x * y)};
        prepare_fiber(fibers[i]);
    }
    race_block_begins();
    bulk_block_begins();
    groups_block_begins();
    const bool whole_warps = machine.order == Order::WarpUp || machine.order == Order::WarpDown;
    std::vector<size_t> order = turns(fibers.size());
    bool any_ran;
    do {
        if (machine.order == Order::Random) {
            shuffle_turns(order);
            const size_t n = boxes_under_way();
            if (n > 0 && next_random() % 4 == 0) land_box(next_random() % n);
        }
        any_ran = false;
        for (size_t first = 0, end; first < order.size(); first = end) {
            end = end_of_warp(order, first);
            bool again;
            do {
                again = false;
                for (size_t k = first; k < end; ++k) {
                    Fiber& fiber = fibers[order[k]];
                    if (!can_go_on(fiber)) continue;
                    fiber.state = State::Ready;
                    resume(fiber);
                    if (failed()) return;
                    any_ran = again = true;
                }
            } while (whole_warps && again);
        }
    } while (!settle(any_ran));
    if (!machine.error.empty()) return;
    machine.error = groups_block_ends();
    if (boxes_under_way() > 0) machine.error = "a bulk copy is under way as its block ends";
}

}  // namespace puna_host

// The interface that src/cuda/host.rs calls.

using namespace puna_host;

extern "C" {

// 1 when there is such a kernel for a device of this compute capability, times ten.
int puna_host_has_kernel(const char* name, int sm) {
    const auto found = kernels().find(name);
    return found != kernels().end() && (sm == 90 || !found->second.sm90a);
}

// How many arguments a kernel has; writes the bytes of the first `room` of them. The largest number
// when there is no such kernel.
size_t puna_host_arg_sizes(const char* name, size_t* sizes, size_t room) {
    const auto entry = kernels().find(name);
    if (entry == kernels().end()) return SIZE_MAX;
    const std::vector<size_t>& all = entry->second.arg_sizes;
    std::copy_n(all.begin(), std::min(room, all.size()), sizes);
    return all.size();
}

void* puna_host_alloc(size_t bytes) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return allocate(bytes, false);
}

// 1 when `p` was allocated and is free now.
int puna_host_free(void* p) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return release(p);
}

// Runs a kernel to its end. `order`: 0 up, 1 down, 2 random, 3 and 4 one warp after the other as
// far as it gets, up and down; 10 more: asynchronous copies land at once. Returns the length of the
// error's text, of which at most `room` bytes are written; 0 when all went well.
size_t puna_host_launch(const char* name, const uint32_t grid[3], const uint32_t block[3],
                        size_t shared_bytes, void** args, size_t n_args, int order, char* message,
                        size_t room) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    machine.error.clear();
    const auto entry = kernels().find(name);
    const char* wanted = bad_shape(grid, block, shared_bytes);
    if (entry == kernels().end()) {
        machine.error = "no such kernel";
    } else if (wanted != nullptr) {
        machine.error = std::string("the launch's shape is wrong, wanted ") + wanted;
    } else if (entry->second.arg_sizes.size() != n_args) {
        machine.error = "the kernel takes " + std::to_string(entry->second.arg_sizes.size()) +
                        " arguments, the launch has " + std::to_string(n_args);
    } else {
        set_fiber_count(size_t(block[0]) * block[1] * block[2]);
        machine.kernel = entry->second.kernel;
        machine.caller = entry->second.caller;
        machine.args = args;
        machine.order = Order(order % 10);
        machine.copies_land_at_once = order >= 10;
        machine.random = 1;
        gridDim = dim3(grid[0], grid[1], grid[2]);
        blockDim = dim3(block[0], block[1], block[2]);
        machine.dynamic_shared = allocate(shared_bytes, true);
        machine.dynamic_bytes = shared_bytes;
        race_launch_begins();
        run_grid(grid);
        const std::string guard = broken_guard();
        if (machine.error.empty()) machine.error = guard;
        release(machine.dynamic_shared);
        machine.dynamic_shared = nullptr;
        machine.kernel = nullptr;
    }
    const size_t length = machine.error.size();
    memcpy(message, machine.error.data(), length < room ? length : room);
    return length;
}

}  // extern "C"
