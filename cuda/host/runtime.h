// What kernels compiled for the host see of the runtime that runs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <vector_types.h>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace puna_host {

// Does a warp's operation once, when its last lane has come: `lane_args[l]` is what lane l brought,
// null for lanes outside `mask`.
typedef void (*WarpFn)(void** lane_args, uint32_t mask);

// Waits until every lane of `mask` calls the same operation at the same place. Only an operation
// that `orders_memory` makes the lanes' writes visible to each other, as CUDA has it for
// __syncwarp and not for shuffles.
void warp_op(uint32_t mask, WarpFn fn, void* arg, bool orders_memory, const char* file, int line);

// Waits for the block; returns in how many of its threads `vote` was not zero.
int barrier(int vote, const char* file, int line);

// Copies `valid` of `bytes` and zeroes the rest, when the thread waits for the copy's group.
void cp_async(void* shared, const void* global, int bytes, int valid, const char* file, int line);
void cp_async_commit();
void cp_async_wait(int groups_left);

void* dynamic_shared();

// Reports an address that a vector access of `bytes` cannot have.
void misaligned(const void* p, size_t bytes, const char* file, int line);
inline void check_aligned(const void* p, size_t bytes, const char* file, int line) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) misaligned(p, bytes, file, line);
}

// Ends the launch with an error that names the calling thread.
[[noreturn]] void fail_at(const char* what, const char* file, int line);

// Told of accesses that the compiler's instrumentation does not see; for the race check.
enum class Access { Read, Write, Atomic };
void note_access(const void* p, size_t bytes, Access access);

typedef void (*Kernel)();
typedef void (*Caller)(Kernel kernel, void** args);

template <class... A, size_t... I>
void call_with(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(args[I])...);
}

template <class... A> void call(Kernel kernel, void** args) {
    call_with(reinterpret_cast<void (*)(A...)>(kernel), args, std::index_sequence_for<A...>{});
}

// `arg_sizes`: bytes of each argument, followed by a 0. `sm90a`: of compute capability 9.0 alone.
void add_kernel(const char* name, Kernel kernel, Caller caller, const size_t* arg_sizes, bool sm90a);

template <class... A> constexpr size_t ARG_SIZES[] = {sizeof(A)..., 0};

struct Register {
    template <class... A> Register(const char* name, void (*kernel)(A...), bool sm90a) {
        add_kernel(name, reinterpret_cast<Kernel>(kernel), &call<A...>, ARG_SIZES<A...>, sm90a);
    }
};

}  // namespace puna_host
