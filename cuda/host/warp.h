// Barriers, shuffles and votes as CUDA spells them, on `warp_op` and `barrier`.
#pragma once

#include "runtime.h"

#define PUNA_HOST_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(PUNA_HOST_AT) { puna_host::barrier(0, file, line); }
inline int __syncthreads_count(int vote, PUNA_HOST_AT) {
    return puna_host::barrier(vote, file, line);
}
inline int __syncthreads_or(int vote, PUNA_HOST_AT) {
    return puna_host::barrier(vote, file, line) > 0;
}
inline int __syncthreads_and(int vote, PUNA_HOST_AT) {
    return puna_host::barrier(!vote, file, line) == 0;
}

inline void __syncwarp(uint32_t mask = 0xffffffffu, PUNA_HOST_AT) {
    puna_host::warp_op(mask, [](void**, uint32_t) {}, nullptr, true, file, line);
}

namespace puna_host {

enum class Shuffle { Index, Xor, Down, Up };

// `FROM` decides which lane of its segment of `width` a lane reads; outside of the segment it keeps
// its own value. What a lane that takes no part would give is undefined on a GPU: zeroes here.
template <Shuffle FROM, class T>
T shuffle(uint32_t mask, T value, int operand, int width, const char* file, int line) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "one or two registers");
    struct Lane {
        T value, result;
        int operand, width;
    } lane{value, value, operand, width};
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        fail_at("a shuffle's width is no power of two up to 32", file, line);
    }
    warp_op(
        mask,
        [](void** args, uint32_t mask) {
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) == 0) continue;
                Lane& lane = *static_cast<Lane*>(args[l]);
                const int first = l & ~(lane.width - 1), end = first + lane.width;
                int from = FROM == Shuffle::Index  ? first + (lane.operand & (lane.width - 1))
                           : FROM == Shuffle::Xor  ? l ^ lane.operand
                           : FROM == Shuffle::Down ? l + lane.operand
                                                   : l - lane.operand;
                const bool inside = FROM == Shuffle::Xor ? from < end : from >= first && from < end;
                if (!inside || from < 0 || from > 31) from = l;
                lane.result = (mask >> from & 1) != 0 ? static_cast<Lane*>(args[from])->value : T{};
            }
        },
        &lane, false, file, line);
    return lane.result;
}

// The lanes whose `vote` is not zero.
inline uint32_t ballot(uint32_t mask, int vote, const char* file, int line) {
    struct Lane {
        int vote;
        uint32_t result;
    } lane{vote, 0};
    warp_op(
        mask,
        [](void** args, uint32_t mask) {
            uint32_t votes = 0;
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) != 0 && static_cast<Lane*>(args[l])->vote != 0) votes |= 1u << l;
            }
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) != 0) static_cast<Lane*>(args[l])->result = votes;
            }
        },
        &lane, false, file, line);
    return lane.result;
}

// For each lane the lanes that brought the same value.
template <class T> uint32_t match(uint32_t mask, T value, const char* file, int line) {
    struct Lane {
        T value;
        uint32_t result;
    } lane{value, 0};
    warp_op(
        mask,
        [](void** args, uint32_t mask) {
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) == 0) continue;
                Lane& lane = *static_cast<Lane*>(args[l]);
                for (int o = 0; o < 32; ++o) {
                    const bool same =
                        (mask >> o & 1) != 0 && static_cast<Lane*>(args[o])->value == lane.value;
                    if (same) lane.result |= 1u << o;
                }
            }
        },
        &lane, false, file, line);
    return lane.result;
}

// An integer reduction by the warp's own instruction (sm_80).
template <class Combine, class T>
T reduce(uint32_t mask, T value, const char* file, int line) {
    struct Lane {
        T value, result;
    } lane{value, value};
    warp_op(
        mask,
        [](void** args, uint32_t mask) {
            T result{};
            bool first = true;
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) == 0) continue;
                const T value = static_cast<Lane*>(args[l])->value;
                result = first ? value : Combine::of(result, value);
                first = false;
            }
            for (int l = 0; l < 32; ++l) {
                if ((mask >> l & 1) != 0) static_cast<Lane*>(args[l])->result = result;
            }
        },
        &lane, false, file, line);
    return lane.result;
}

struct Sum {
    // Wraps around as the hardware's sum does.
    template <class T> static T of(T a, T b) {
        using U = std::make_unsigned_t<T>;
        return T(U(a) + U(b));
    }
};
struct Least {
    template <class T> static T of(T a, T b) { return b < a ? b : a; }
};
struct Largest {
    template <class T> static T of(T a, T b) { return a < b ? b : a; }
};
struct And {
    template <class T> static T of(T a, T b) { return a & b; }
};
struct Or {
    template <class T> static T of(T a, T b) { return a | b; }
};

}  // namespace puna_host

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, PUNA_HOST_AT) {
    return puna_host::shuffle<puna_host::Shuffle::Index>(mask, value, lane, width, file, line);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, PUNA_HOST_AT) {
    return puna_host::shuffle<puna_host::Shuffle::Xor>(mask, value, lanes, width, file, line);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32, PUNA_HOST_AT) {
    return puna_host::shuffle<puna_host::Shuffle::Down>(mask, value, int(by), width, file, line);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, PUNA_HOST_AT) {
    return puna_host::shuffle<puna_host::Shuffle::Up>(mask, value, int(by), width, file, line);
}

inline uint32_t __ballot_sync(uint32_t mask, int vote, PUNA_HOST_AT) {
    return puna_host::ballot(mask, vote, file, line);
}
inline int __any_sync(uint32_t mask, int vote, PUNA_HOST_AT) {
    return puna_host::ballot(mask, vote, file, line) != 0;
}
inline int __all_sync(uint32_t mask, int vote, PUNA_HOST_AT) {
    return puna_host::ballot(mask, !vote, file, line) == 0;
}
template <class T> inline uint32_t __match_any_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::match(mask, value, file, line);
}
template <class T> inline T __reduce_add_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::reduce<puna_host::Sum>(mask, value, file, line);
}
template <class T> inline T __reduce_min_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::reduce<puna_host::Least>(mask, value, file, line);
}
template <class T> inline T __reduce_max_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::reduce<puna_host::Largest>(mask, value, file, line);
}
template <class T> inline T __reduce_and_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::reduce<puna_host::And>(mask, value, file, line);
}
template <class T> inline T __reduce_or_sync(uint32_t mask, T value, PUNA_HOST_AT) {
    return puna_host::reduce<puna_host::Or>(mask, value, file, line);
}
