// What C++ leaves undefined, where the compiler sees it at run time (-fsanitize=alignment, bounds,
// shift, integer-divide-by-zero, signed-integer-overflow): an error of the launch, with its place. The
// handlers are ours, so no sanitiser's library is linked.
#include <cstdint>
#include <string>

#include "machine.h"

namespace {

// How the data of every handler begins (gcc, libsanitizer/ubsan/ubsan_handlers.h).
struct Data {
    const char* file;
    uint32_t line, column;
};

void undefined(const Data* data, const char* what) {
    puna_host::fail_at(what, data->file, int(data->line));
}

}  // namespace

#define PUNA_UBSAN(name, what, ...)                                                          \
    void __ubsan_handle_##name(Data* data, ##__VA_ARGS__) { undefined(data, what); }

extern "C" {
PUNA_UBSAN(type_mismatch_v1, "a misaligned access", uintptr_t)
PUNA_UBSAN(out_of_bounds, "an index outside of its array", uintptr_t)
PUNA_UBSAN(shift_out_of_bounds, "a shift by more bits than there are", uintptr_t, uintptr_t)
PUNA_UBSAN(divrem_overflow, "a division by zero or out of range", uintptr_t, uintptr_t)
PUNA_UBSAN(add_overflow, "a signed sum overflows", uintptr_t, uintptr_t)
PUNA_UBSAN(sub_overflow, "a signed difference overflows", uintptr_t, uintptr_t)
PUNA_UBSAN(mul_overflow, "a signed product overflows", uintptr_t, uintptr_t)
PUNA_UBSAN(negate_overflow, "a negation overflows", uintptr_t)
}
