// Fibers: a stack of their own and a switch between stacks.
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "machine.h"

#if PUNA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the host harness switches stacks in x86-64 assembler only"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Saves the registers that a call keeps (System V ABI, x86-64, section 3.2.1) on the stack, leaves the
// stack pointer in *save, and goes on from `next`, where another call of this left off.
extern "C" void puna_host_switch(void** save, void* next);
asm(R"(
.text
.globl puna_host_switch
.type puna_host_switch, @function
puna_host_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size puna_host_switch, .-puna_host_switch
)");

namespace puna_host {

Machine machine;

namespace {

// Instrumented frames are several times as large.
constexpr size_t STACK = PUNA_ASAN ? 512 << 10 : 128 << 10;
constexpr size_t GUARD_PAGE = 4096;
constexpr size_t SAVED_REGISTERS = 6;

void* scheduler_stack_pointer;
#if PUNA_ASAN
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_size;
#endif

// The switches tell AddressSanitizer which stack is in use (sanitizer/common_interface_defs.h).
void leave(Fiber& fiber, bool for_good) {
#if PUNA_ASAN
    void** keep = for_good ? nullptr : &fiber.fake_stack;
    __sanitizer_start_switch_fiber(keep, scheduler_stack, scheduler_stack_size);
#else
    (void)for_good;
#endif
    puna_host_switch(&fiber.stack_pointer, scheduler_stack_pointer);
#if PUNA_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

// What a fresh fiber returns into.
void begin() {
#if PUNA_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    machine.caller(machine.kernel, machine.args);
    machine.current->state = State::Done;
    leave(*machine.current, true);
    abort();  // nobody resumes a fiber that is done
}

}  // namespace

void to_scheduler() { leave(*machine.current, false); }

void resume(Fiber& fiber) {
    machine.current = &fiber;
    threadIdx = fiber.thread;
#if PUNA_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK);
#endif
    puna_host_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#if PUNA_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    machine.current = nullptr;
}

void prepare_fiber(Fiber& fiber) {
#if PUNA_ASAN
    // A fiber that failed left its frames' red zones behind.
    __asan_unpoison_memory_region(fiber.stack, STACK);
#endif
    // As if `begin` had been called: the ABI wants the stack pointer 8 past a multiple of 16 there.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK) - 2;
    *top = reinterpret_cast<void*>(&begin);
    fiber.stack_pointer = top - SAVED_REGISTERS;
    fiber.state = State::Ready;
    fiber.place = {};
    fiber.open_group.clear();
    fiber.groups.clear();
    fiber.made.clear();
    fiber.unfenced = false;
}

void set_fiber_count(size_t n) {
    auto& fibers = machine.fibers;
    while (fibers.size() > n) {
        munmap(fibers.back().stack - GUARD_PAGE, STACK + GUARD_PAGE);
        fibers.pop_back();
    }
    while (fibers.size() < n) {
        void* mapped = mmap(nullptr, STACK + GUARD_PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) abort();
        // A stack that overflows hits a page that cannot be touched.
        mprotect(mapped, GUARD_PAGE, PROT_NONE);
        Fiber fiber;
        fiber.stack = static_cast<char*>(mapped) + GUARD_PAGE;
        fibers.push_back(fiber);
    }
}

bool on_own_stack(const void* p) {
    const char* stack = machine.current->stack;
    return p >= stack && p < stack + STACK;
}

}  // namespace puna_host
