// The meaning of what compute capability 9.0 adds; cuda/include/ptx_sm90a.cuh calls it.
//
// As bad as the manual allows: a bulk copy lands when nothing else can go on, and until then its
// place is NaN; a product reads its factors when it is waited for, and until then its sums are NaN.
// In the orders from 10 on both happen at once. It holds kernels to our reading of the manual, no
// more: that the reading is right only a GPU can say.
#pragma once

#include "runtime.h"

namespace puna_host {

// Address of a byte of dynamic shared memory as instructions know it.
uint32_t shared_window(const void* p);

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const char* file, int line);
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, const char* file, int line);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, const char* file, int line);
void fence_proxy_async();
void named_barrier(int id, int threads, bool waits, const char* file, int line);

// `map` as `puna_host_tensor_map` fills it in.
void copy_box(void* to, const uint64_t* map, int row, int col, uint64_t* barrier, const char* file,
              int line);

// d [64, n] = a b, or d += a b. `a_registers` is null where a is in shared memory.
struct GroupProduct {
    float* d;
    int n;
    const uint32_t* a_registers;
    uint64_t a, b;
    // Inputs run across memory, not along.
    bool a_across, b_across;
    bool add;
};
void wgmma(const GroupProduct& product, const char* file, int line);
void wgmma_fence(const char* file, int line);
void wgmma_commit(const char* file, int line);
void wgmma_wait(int groups_left, const char* file, int line);

}  // namespace puna_host
