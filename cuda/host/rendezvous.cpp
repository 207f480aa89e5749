// Where threads meet: warp operations, barriers, and the copies that land at a wait.
#include <cstring>

#include "machine.h"

namespace puna_host {

namespace {

bool same_place(const Place& a, const Place& b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

void move(const Copy& copy) {
    if (copy.valid > 0) memcpy(copy.to, copy.from, size_t(copy.valid));
    memset(static_cast<char*>(copy.to) + copy.valid, 0, size_t(copy.bytes - copy.valid));
}

// The end of a copy that was waited for. Its bytes may have come long before.
void land(const Copy& copy) {
    machine.current->unfenced = true;
    note_in_flight(copy.to, size_t(copy.bytes), false);
    if (copy.valid > 0) note_access(copy.from, size_t(copy.valid), Access::Read);
    note_access(copy.to, size_t(copy.bytes), Access::Write);
    if (!machine.copies_land_at_once) move(copy);
}

}  // namespace

void warp_op(uint32_t mask, WarpFn fn, void* arg, bool orders_memory, const char* file, int line) {
    auto& fibers = machine.fibers;
    Fiber& self = *machine.current;
    const int warp = self.id / 32, lane = self.id % 32;
    const int lanes = int(fibers.size()) - warp * 32;
    if (lanes < 32) mask &= (1u << lanes) - 1;
    self.place = {file, line};
    self.mask = mask;
    self.fn = fn;
    self.arg = arg;
    self.state = State::AtWarpOp;
    if ((mask >> lane & 1) == 0) fail("a lane that is not in its own mask: " + where(self));

    void* args[32] = {};
    bool all_here = true, whole_warp = true;
    for (int l = 0; l < 32 && l < lanes; ++l) {
        Fiber& other = fibers[size_t(warp * 32 + l)];
        if ((mask >> l & 1) == 0) {
            whole_warp &= other.state == State::Done;
            continue;
        }
        if (other.state == State::Done) {
            fail("a warp operation that not all lanes of its mask reach, lane " +
                 std::to_string(l) + " having ended: " + where(self));
        }
        if (other.state != State::AtWarpOp) {
            all_here = false;
            continue;
        }
        const bool same =
            other.mask == mask && other.fn == fn && same_place(other.place, self.place);
        if (!same) fail("lanes of a warp diverged: " + where(self) + "; " + where(other));
        args[l] = other.arg;
    }
    if (!all_here) return to_scheduler();

    fn(args, mask);
    if (orders_memory && whole_warp) race_warp_synced(warp);
    for (int l = 0; l < 32 && l < lanes; ++l) {
        if ((mask >> l & 1) != 0) fibers[size_t(warp * 32 + l)].state = State::Ready;
    }
}

int barrier(int vote, const char* file, int line) {
    Fiber& self = *machine.current;
    self.state = State::AtBarrier;
    self.place = {file, line};
    self.vote = vote != 0;
    to_scheduler();
    return self.votes;
}

void cp_async(void* shared, const void* global, int bytes, int valid, const char* file, int line) {
    Fiber& self = *machine.current;
    self.place = {file, line};
    check_aligned(shared, size_t(bytes), file, line);
    check_aligned(global, size_t(bytes), file, line);
    if (valid < 0 || valid > bytes) fail("cp.async of more bytes than its size: " + where(self));
    if (!is_shared(shared, size_t(bytes))) {
        fail("cp.async writes outside of the block's shared memory: " + where(self));
    }
    // From now on until it is waited for, nobody may touch the destination.
    note_access(shared, size_t(bytes), Access::Write);
    note_in_flight(shared, size_t(bytes), true);
    const Copy copy{shared, global, bytes, valid};
    if (machine.copies_land_at_once) move(copy);
    self.open_group.push_back(copy);
}

void cp_async_commit() {
    Fiber& self = *machine.current;
    self.groups.push_back(std::move(self.open_group));
    self.open_group.clear();
}

void cp_async_wait(int groups_left) {
    auto& groups = machine.current->groups;
    while (int(groups.size()) > groups_left) {
        for (const Copy& copy : groups.front()) land(copy);
        groups.pop_front();
    }
}

void* dynamic_shared() { return machine.dynamic_shared; }

void misaligned(const void* p, size_t bytes, const char* file, int line) {
    fail_at(("an access of " + std::to_string(bytes) + " bytes at an address that is " +
             std::to_string(reinterpret_cast<uintptr_t>(p) % bytes) + " past a multiple of it")
                .c_str(),
            file, line);
}

void fail_at(const char* what, const char* file, int line) {
    machine.current->place = {file, line};
    fail(std::string(what) + ": " + where(*machine.current));
}

}  // namespace puna_host
