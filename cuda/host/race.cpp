// The race check. Kernels are compiled with -fsanitize=thread, which calls __tsan_read4 and its like
// before every access; here those calls are ours. For every byte of device and shared memory
// a shadow says who wrote and who read it last, and an access that nothing orders after
// another thread's is an error, whichever of the two came first this time.
//
// Two threads of a block are ordered by a barrier between their accesses; two lanes of a warp also by
// a __syncwarp; two blocks of a launch by nothing.
#include <cstring>

#include "machine.h"

#if !defined(PUNA_HOST_RACE)

namespace puna_host {
void watch(char*, size_t, size_t, bool) {}
void unwatch(const char*) {}
void race_launch_begins() {}
void race_block_begins() {}
void race_barrier() {}
void race_warp_synced(int) {}
void note_access(const void*, size_t, Access) {}
void note_in_flight(const void*, size_t, bool) {}
}  // namespace puna_host

#else

#include <map>
#include <memory>

extern "C" {
extern char __start_puna_shared[] __attribute__((weak));
extern char __stop_puna_shared[] __attribute__((weak));
}

namespace puna_host {

namespace {

// Who touched a byte last. An epoch is the time between two barriers of one block; epochs are
// counted over the whole process, so their number also tells block and launch.
struct Touch {
    uint32_t epoch = 0;
    uint32_t warp_syncs : 19;
    uint32_t thread : 10;
    uint32_t atomic : 1;
    // Of reads: others read in the same epoch, of the same warp since its last sync, or of others.
    uint32_t other_lanes : 1;
    uint32_t other_warps : 1;
    Touch() : warp_syncs(0), thread(0), atomic(0), other_lanes(0), other_warps(0) {}
};

struct Shadow {
    Touch write, read;
    // Blocks beside the last reader's read the byte in the last reader's launch.
    bool other_blocks = false;
    // The block, by its first epoch, one of whose asynchronous copies is on its way to the byte.
    uint32_t in_flight = 0;
};

struct Region {
    size_t bytes, guard;
    bool shared;
    std::unique_ptr<Shadow[]> shadows;
};

// By first byte.
std::map<uintptr_t, Region> regions;
std::pair<uintptr_t, Region*> last_region{0, nullptr};

uint32_t epoch = 1, launch_epoch = 1, block_epoch = 1;
std::vector<uint32_t> warp_syncs;

Region* region_of(uintptr_t p, uintptr_t& first) {
    const auto holds = [p](uintptr_t first, const Region& region) {
        return p + region.guard >= first && p < first + region.bytes + region.guard;
    };
    if (last_region.second == nullptr || !holds(last_region.first, *last_region.second)) {
        // The nearest region that begins at or before p, or just behind it, p being in its guard.
        auto found = regions.upper_bound(p);
        if (found == regions.end() || !holds(found->first, found->second)) {
            if (found == regions.begin()) return nullptr;
            --found;
            if (!holds(found->first, found->second)) return nullptr;
        }
        last_region = {found->first, &found->second};
    }
    first = last_region.first;
    return last_region.second;
}

// Whether nothing orders an access of the current thread after the touch; reads and writes alike.
bool unordered(const Touch& touch, const Touch& now, bool shared) {
    if (touch.epoch < launch_epoch) return false;
    if (touch.epoch < block_epoch) return !shared;
    if (touch.epoch != epoch) return false;
    if (touch.thread == now.thread) return false;
    return touch.thread / 32 != now.thread / 32 || touch.warp_syncs == now.warp_syncs;
}

// The same for the readers that a shadow only counts.
bool unordered_others(const Shadow& shadow, const Touch& now, bool shared) {
    const Touch& read = shadow.read;
    if (shadow.other_blocks && !shared && read.epoch >= launch_epoch) return true;
    if (read.epoch != epoch) return false;
    const bool same_sync =
        read.thread / 32 == now.thread / 32 && read.warp_syncs == now.warp_syncs;
    return read.other_warps || (read.other_lanes && same_sync);
}

void note_read(Shadow& shadow, Touch now) {
    Touch& read = shadow.read;
    if (read.epoch < launch_epoch) {
        shadow.other_blocks = false;
    } else if (read.epoch < block_epoch) {
        shadow.other_blocks = true;
    } else if (read.epoch == epoch) {
        now.other_warps = read.other_warps || read.thread / 32 != now.thread / 32;
        now.other_lanes = read.thread / 32 == now.thread / 32 &&
                          read.warp_syncs == now.warp_syncs &&
                          (read.other_lanes || read.thread != now.thread);
    }
    read = now;
}

[[noreturn]] void report(const char* first, const char* second, const Region& region, size_t offset,
                         int other) {
    const Fiber& self = *machine.current;
    const std::string them = other < 0 ? "another thread" : "thread " + std::to_string(other);
    fail(std::string("a race: a ") + first + " by " + them + " and a " + second + " by thread " +
         std::to_string(self.id) + " have no barrier between them, in " +
         (region.shared ? "shared" : "global") + " memory at byte " + std::to_string(offset) +
         " of " + std::to_string(region.bytes) + "; " + where(self));
}

}  // namespace

void watch(char* first, size_t bytes, size_t guard, bool shared) {
    regions.emplace(reinterpret_cast<uintptr_t>(first),
                    Region{bytes, guard, shared, std::make_unique<Shadow[]>(bytes)});
    last_region.second = nullptr;
}

void unwatch(const char* first) {
    regions.erase(reinterpret_cast<uintptr_t>(first));
    last_region.second = nullptr;
}

void race_launch_begins() {
    static const bool watched = [] {
        const size_t bytes = size_t(__stop_puna_shared - __start_puna_shared);
        if (bytes > 0) watch(__start_puna_shared, bytes, 0, true);
        return true;
    }();
    (void)watched;
    launch_epoch = ++epoch;
}

void race_block_begins() {
    block_epoch = ++epoch;
    warp_syncs.assign((machine.fibers.size() + 31) / 32, 0);
}

void race_barrier() { ++epoch; }

void race_warp_synced(int warp) { ++warp_syncs[size_t(warp)]; }

void note_access(const void* p, size_t bytes, Access access) {
    if (machine.current == nullptr || on_own_stack(p)) return;
    uintptr_t first;
    Region* region = region_of(reinterpret_cast<uintptr_t>(p), first);
    if (region == nullptr) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    if (at < first || at + bytes > first + region->bytes) {
        fail(std::string(access == Access::Read ? "a read" : "a write") + " outside of a buffer of " +
             std::to_string(region->bytes) + " bytes, at byte " +
             std::to_string(int64_t(at) - int64_t(first)) + "; " + where(*machine.current));
    }
    Touch now;
    now.epoch = epoch;
    now.thread = unsigned(machine.current->id) & 1023;
    now.warp_syncs = warp_syncs[size_t(now.thread / 32)] & 0x7ffff;
    now.atomic = access == Access::Atomic;
    const char* name = access == Access::Read ? "read" : "write";
    if (region->shared && access == Access::Write) machine.current->unfenced = true;
    for (size_t i = 0; i < bytes; ++i) {
        const size_t offset = at - first + i;
        Shadow& shadow = region->shadows[offset];
        if (shadow.in_flight == block_epoch) {
            fail(std::string("a race: a ") + name + " by thread " + std::to_string(now.thread) +
                 " of what an asynchronous copy by thread " + std::to_string(shadow.write.thread) +
                 " may still be writing, not waited for, in shared memory at byte " +
                 std::to_string(offset) + "; " + where(*machine.current));
        }
        const bool both_atomic = shadow.write.atomic && now.atomic;
        if (!both_atomic && unordered(shadow.write, now, region->shared)) {
            report("write", name, *region, offset, int(shadow.write.thread));
        }
        if (access == Access::Read) {
            note_read(shadow, now);
            continue;
        }
        if (unordered(shadow.read, now, region->shared)) {
            report("read", name, *region, offset, int(shadow.read.thread));
        }
        if (unordered_others(shadow, now, region->shared)) {
            report("read", name, *region, offset, -1);
        }
        shadow.write = now;
    }
}

void note_in_flight(const void* p, size_t bytes, bool begins) {
    uintptr_t first;
    Region* region = region_of(reinterpret_cast<uintptr_t>(p), first);
    if (region == nullptr) return;
    const size_t at = size_t(reinterpret_cast<uintptr_t>(p) - first);
    for (size_t i = at; i < at + bytes && i < region->bytes; ++i) {
        region->shadows[i].in_flight = begins ? block_epoch : 0;
    }
}

}  // namespace puna_host

// The instrumentation's interface (gcc, libsanitizer/tsan/tsan_interface.h), as far as gcc calls it.
#define PUNA_TSAN(bytes)                                                                     \
    void __tsan_read##bytes(void* p) { note_access(p, bytes, Access::Read); }                \
    void __tsan_write##bytes(void* p) { note_access(p, bytes, Access::Write); }              \
    void __tsan_unaligned_read##bytes(void* p) { note_access(p, bytes, Access::Read); }      \
    void __tsan_unaligned_write##bytes(void* p) { note_access(p, bytes, Access::Write); }

extern "C" {
using puna_host::Access;
using puna_host::note_access;
PUNA_TSAN(1)
PUNA_TSAN(2)
PUNA_TSAN(4)
PUNA_TSAN(8)
PUNA_TSAN(16)
void __tsan_read_range(void* p, size_t bytes) { note_access(p, bytes, Access::Read); }
void __tsan_write_range(void* p, size_t bytes) { note_access(p, bytes, Access::Write); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Of the guards around static variables with constructors.
char __tsan_atomic8_load(const volatile char* p, int) { return *p; }
}

#endif
