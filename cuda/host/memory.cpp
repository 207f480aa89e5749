// Device memory that is host memory: buffers of exactly the size asked for, between guards that no
// kernel may touch, filled so that what was never written is NaN.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <unistd.h>

#include "machine.h"

#if PUNA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The linker's names for the ends of the section of static shared variables; null without any.
extern "C" {
extern char __start_puna_shared[] __attribute__((weak));
extern char __stop_puna_shared[] __attribute__((weak));
}

namespace puna_host {

namespace {

// As a GPU's allocations are aligned.
constexpr size_t ALIGNMENT = 256;
constexpr size_t GUARD = 256;
// A NaN as f32 and as bf16, and not the 0xff of memory that was never written.
constexpr uint16_t GUARD_WORD = 0xffc1;

struct Buffer {
    size_t bytes;
    bool shared;
};

std::map<char*, Buffer>& buffers() {
    static std::map<char*, Buffer> all;
    return all;
}

// 0 when intact, else 1 + the offset of the first byte that was written.
size_t first_written(const char* guard) {
    for (size_t i = 0; i < GUARD; ++i) {
        const char wanted = char(GUARD_WORD >> (i % 2 * 8));
        if (guard[i] != wanted) return i + 1;
    }
    return 0;
}

void write_guard(char* guard) {
    for (size_t i = 0; i < GUARD; ++i) guard[i] = char(GUARD_WORD >> (i % 2 * 8));
}

// The compiler's checks of addresses do not see it, so it may cross red zones.
void fill_unseen(char* to, size_t bytes) {
    asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xff) : "memory");
}

}  // namespace

char* allocate(size_t bytes, bool shared) {
    void* base = nullptr;
    if (posix_memalign(&base, ALIGNMENT, GUARD + bytes + GUARD) != 0) return nullptr;
    char* user = static_cast<char*>(base) + GUARD;
    memset(user, 0xff, bytes);
#if PUNA_ASAN
    __asan_poison_memory_region(user - GUARD, GUARD);
    __asan_poison_memory_region(user + bytes, GUARD);
#else
    write_guard(user - GUARD);
    write_guard(user + bytes);
#endif
    buffers()[user] = {bytes, shared};
    watch(user, bytes, GUARD, shared);
    return user;
}

bool release(void* p) {
    const auto found = buffers().find(static_cast<char*>(p));
    if (found == buffers().end()) return false;
    char* base = found->first - GUARD;
#if PUNA_ASAN
    __asan_unpoison_memory_region(base, GUARD + found->second.bytes + GUARD);
#endif
    unwatch(found->first);
    buffers().erase(found);
    free(base);
    return true;
}

std::string broken_guard() {
#if !PUNA_ASAN
    for (const auto& [user, buffer] : buffers()) {
        const size_t before = first_written(user - GUARD);
        const size_t behind = first_written(user + buffer.bytes);
        if (before == 0 && behind == 0) continue;
        // Another launch must not be blamed.
        write_guard(user - GUARD);
        write_guard(user + buffer.bytes);
        return std::string(buffer.shared ? "dynamic shared memory" : "a buffer") + " of " +
               std::to_string(buffer.bytes) + " bytes was written outside, " +
               (behind != 0 ? std::to_string(behind - 1) + " bytes behind its end"
                            : std::to_string(GUARD - (before - 1)) + " bytes before its beginning");
    }
#endif
    return {};
}

void clear_shared() {
    if (__start_puna_shared != nullptr) {
        fill_unseen(__start_puna_shared, size_t(__stop_puna_shared - __start_puna_shared));
    }
    fill_unseen(machine.dynamic_shared, machine.dynamic_bytes);
}

bool is_shared(const void* p, size_t bytes) {
    const char* first = static_cast<const char*>(p);
    if (__start_puna_shared != nullptr && first >= __start_puna_shared &&
        first + bytes <= __stop_puna_shared) {
        return true;
    }
    const char* dynamic = machine.dynamic_shared;
    return first >= dynamic && first + bytes <= dynamic + machine.dynamic_bytes;
}

#if PUNA_ASAN

namespace {

std::string finding;

// The report's first lines say what, how many bytes and where; the rest is for a person.
void keep(const char* report) {
    if (machine.kernel == nullptr || strstr(report, "SEGV") != nullptr) {
        // Not of a kernel, or about to end the process: nobody would read it later.
        fputs(report, stderr);
        return;
    }
    if (!finding.empty()) return;
    const std::string text = report;
    const auto line_with = [&text](const char* what) -> std::string {
        const size_t at = text.find(what);
        return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
    };
    finding = line_with("AddressSanitizer: ") + "; " + line_with(" of size ") + "; " +
              line_with("#0 ");
    if (machine.current != nullptr) finding += "; " + where(*machine.current);
}

}  // namespace

std::string address_finding() {
    std::string text;
    text.swap(finding);
    return text;
}

#else

std::string address_finding() { return {}; }

#endif

}  // namespace puna_host

#if PUNA_ASAN

// Reports come back as errors of the launch, so they neither end the process nor are they kept
// quiet the second time.
extern "C" const char* __asan_default_options() {
    return "halt_on_error=0:suppress_equal_pcs=0:detect_leaks=0:detect_stack_use_after_return=0:"
           "allocator_may_return_null=1";
}

namespace {
const bool reports_are_kept = [] {
    __asan_set_error_report_callback(&puna_host::keep);
    return true;
}();
}  // namespace

#endif

// What the kernels and this runtime were compiled with: "address", "race" or nothing.
extern "C" const char* puna_host_sanitizer() {
#if PUNA_ASAN
    return "address";
#elif defined(PUNA_HOST_RACE)
    return "race";
#else
    return "";
#endif
}
