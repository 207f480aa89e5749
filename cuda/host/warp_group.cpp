// Products of warp groups: each warp computes its sixteen rows, when its last lane has come or when
// it waits for them. What the four warps start is compared.
#include <array>
#include <cstring>
#include <map>
#include <string>

#include "hopper.h"
#include "machine.h"

namespace puna_host {

namespace {

constexpr int LANES = 32, GROUP_WARPS = 4, INPUTS = 16;
constexpr uint32_t WHOLE_WARP = 0xffffffffu;
// Where dynamic shared memory begins in the window: behind static variables, at no multiple of 1024.
constexpr uint32_t WINDOW = 0x480;

struct Lane {
    const GroupProduct* product;
    Place place;
};

// A product that a warp has started.
struct Started {
    GroupProduct product;
    std::array<float*, LANES> d;
    std::array<std::array<uint32_t, 4>, LANES> a_registers;
};

// Sums that products under way go on writing; lane after lane.
struct Sums {
    std::vector<float> now;
    int products = 0;
};

struct Warp {
    bool fenced = false;
    std::vector<Started> open;
    std::deque<std::vector<Started>> groups;
    // By the first lane's registers.
    std::map<float*, Sums> sums;
    size_t n_started = 0;
};
std::vector<Warp> warps;

// What all four warps of a group have to start alike, in order.
struct Alike {
    int n;
    uint64_t a, b;
    bool from_registers, a_across, b_across, add;
    bool operator==(const Alike& o) const {
        return n == o.n && a == o.a && b == o.b && from_registers == o.from_registers &&
               a_across == o.a_across && b_across == o.b_across && add == o.add;
    }
};
std::vector<std::vector<Alike>> of_groups;

int current_warp() { return machine.current->id / LANES; }

[[noreturn]] void refuse(const char* what) {
    const Place& place = machine.current->place;
    fail_at(what, place.file, place.line);
}

// ---- descriptors ----

// Fields of a descriptor, in bytes.
struct Tile {
    uint32_t start, leading, stride;
    bool across;

    Tile(uint64_t descriptor, bool across) : across(across) {
        start = uint32_t(descriptor & 0x3fff) << 4;
        leading = uint32_t(descriptor >> 16 & 0x3fff) << 4;
        stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
        if (descriptor >> 62 != 1) refuse("a descriptor of another mode than 128 bytes");
        if ((descriptor >> 46 & 0xffff) != 0) refuse("a descriptor with bits that have no meaning");
        if ((start >> 7 & 7) != 0) {
            refuse("a descriptor of a tile whose permutation does not begin at a multiple of 1024");
        }
    }

    // Row (of a) or column (of b) `lane`, input `k`.
    float at(int lane, int k) const {
        const uint32_t plain =
            across ? start + uint32_t(lane / 64) * leading + uint32_t(lane % 64) * 2 +
                         uint32_t(k / 8) * stride + uint32_t(k % 8) * 128
                   : start + uint32_t(lane / 8) * stride + uint32_t(lane % 8) * 128 +
                         uint32_t(k) * 2;
        const uint32_t address = plain ^ (plain >> 7 & 7) << 4;
        const char* byte = machine.dynamic_shared + (int64_t(address) - WINDOW);
        if (!is_shared(byte, 2)) refuse("a product of what is outside of shared memory");
        uint16_t bits;
        memcpy(&bits, byte, 2);
        return value(bits);
    }

    static float value(uint16_t bits) {
        const uint32_t wide = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &wide, sizeof x);
        return x;
    }
};

// ---- arithmetic ----

// `sums`: n / 2 a lane. Fragments as cuda/include/mma.cuh has them.
void multiply(const Started& started, int warp, float* sums) {
    const GroupProduct& product = started.product;
    const int n = product.n, row0 = warp % GROUP_WARPS * 16;
    static float a[16][INPUTS], b[INPUTS][256], d[16][256];
    if (product.a_registers != nullptr) {
        for (int l = 0; l < LANES; ++l) {
            const int g = l / 4, t = l % 4 * 2;
            for (int i = 0; i < 4; ++i) {
                const uint32_t pair = started.a_registers[size_t(l)][size_t(i)];
                const int row = g + i % 2 * 8, k = t + i / 2 * 8;
                a[row][k] = Tile::value(uint16_t(pair));
                a[row][k + 1] = Tile::value(uint16_t(pair >> 16));
            }
        }
    } else {
        const Tile tile(product.a, product.a_across);
        for (int row = 0; row < 16; ++row) {
            for (int k = 0; k < INPUTS; ++k) a[row][k] = tile.at(row0 + row, k);
        }
    }
    const Tile tile(product.b, product.b_across);
    for (int k = 0; k < INPUTS; ++k) {
        for (int col = 0; col < n; ++col) b[k][col] = tile.at(col, k);
    }
    const auto each = [&](auto f) {
        for (int l = 0; l < LANES; ++l) {
            for (int i = 0; i < n / 2; ++i) {
                f(sums[l * (n / 2) + i], d[l / 4 + i % 4 / 2 * 8][i / 4 * 8 + l % 4 * 2 + i % 2]);
            }
        }
    };
    each([&](float& sum, float& x) { x = product.add ? sum : 0.f; });
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < INPUTS; ++k) {
            for (int col = 0; col < n; ++col) d[row][col] += a[row][k] * b[k][col];
        }
    }
    each([](float& sum, float& x) { sum = x; });
}

void gather(const Started& started, std::vector<float>& sums) {
    const size_t half = size_t(started.product.n / 2);
    sums.resize(LANES * half);
    for (size_t l = 0; l < LANES; ++l) {
        memcpy(&sums[l * half], started.d[l], half * sizeof(float));
    }
}

void scatter(const Started& started, const std::vector<float>& sums) {
    const size_t half = size_t(started.product.n / 2);
    for (size_t l = 0; l < LANES; ++l) {
        memcpy(started.d[l], &sums[l * half], half * sizeof(float));
    }
}

void finish(const Started& started, int warp) {
    auto& all = warps[size_t(warp)].sums;
    const auto found = all.find(started.d[0]);
    multiply(started, warp, found->second.now.data());
    if (--found->second.products > 0) return;
    scatter(started, found->second.now);
    all.erase(found);
}

// ---- one call for the warp ----

void start(void** args, uint32_t) {
    const int id = current_warp();
    Warp& warp = warps[size_t(id)];
    Started started{*static_cast<Lane*>(args[0])->product, {}, {}};
    const auto alike = [](const GroupProduct& p) {
        return Alike{p.n, p.a, p.b, p.a_registers != nullptr, p.a_across, p.b_across, p.add};
    };
    const Alike first = alike(started.product);
    for (size_t l = 0; l < LANES; ++l) {
        const GroupProduct& product = *static_cast<Lane*>(args[l])->product;
        if (!(alike(product) == first)) refuse("lanes of a warp that start different products");
        started.d[l] = product.d;
        if (product.a_registers != nullptr) {
            memcpy(&started.a_registers[l], product.a_registers, 4 * sizeof(uint32_t));
        }
    }
    auto& log = of_groups[size_t(id / GROUP_WARPS)];
    if (warp.n_started == log.size()) log.push_back(first);
    if (!(log[warp.n_started++] == first)) {
        refuse("warps of a group that start different products");
    }
    if (!warp.fenced) refuse("a product without wgmma_fence since the last wait");
    // Errors of descriptors belong to this call.
    if (!first.from_registers) Tile(first.a, first.a_across);
    Tile(first.b, first.b_across);
    Sums& sums = warp.sums[started.d[0]];
    if (sums.products++ == 0) {
        gather(started, sums.now);
        scatter(started, std::vector<float>(sums.now.size(), Tile::value(0x7fff)));
    }
    if (machine.copies_land_at_once) return finish(started, id);
    warp.open.push_back(started);
}

void commit(void**, uint32_t) {
    Warp& warp = warps[size_t(current_warp())];
    warp.groups.push_back(std::move(warp.open));
    warp.open.clear();
}

void wait(void** args, uint32_t) {
    const int id = current_warp();
    Warp& warp = warps[size_t(id)];
    while (int(warp.groups.size()) > *static_cast<int*>(args[0])) {
        for (const Started& started : warp.groups.front()) finish(started, id);
        warp.groups.pop_front();
    }
    warp.fenced = false;
}

}  // namespace

uint32_t shared_window(const void* p) {
    return uint32_t(static_cast<const char*>(p) - machine.dynamic_shared) + WINDOW;
}

void wgmma(const GroupProduct& product, const char* file, int line) {
    if (machine.fibers.size() % (LANES * GROUP_WARPS) != 0) {
        fail_at("wgmma in a block that is no multiple of 128 threads", file, line);
    }
    Lane lane{&product, {file, line}};
    warp_op(WHOLE_WARP, &start, &lane, false, file, line);
}

void wgmma_fence(const char* file, int line) {
    const auto fence = [](void**, uint32_t) { warps[size_t(current_warp())].fenced = true; };
    warp_op(WHOLE_WARP, fence, nullptr, false, file, line);
}

void wgmma_commit(const char* file, int line) {
    warp_op(WHOLE_WARP, &commit, nullptr, false, file, line);
}

void wgmma_wait(int groups_left, const char* file, int line) {
    warp_op(WHOLE_WARP, &wait, &groups_left, false, file, line);
}

void groups_block_begins() {
    const size_t n = (machine.fibers.size() + LANES - 1) / LANES;
    warps.assign(n, {});
    of_groups.assign((n + GROUP_WARPS - 1) / GROUP_WARPS, {});
}

// What is wrong as a block ends, or nothing.
std::string groups_block_ends() {
    for (size_t i = 0; i < warps.size(); ++i) {
        const std::string who = "warp " + std::to_string(i);
        if (!warps[i].sums.empty()) return "products that nobody waited for, of " + who;
        if (warps[i].n_started != of_groups[i / GROUP_WARPS].size()) {
            return "fewer products than the others of its group, by " + who;
        }
    }
    return {};
}

}  // namespace puna_host
