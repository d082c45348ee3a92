// Memory that is kept from call to call: fresh pages cost more than what is written to them.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

namespace eddecode {

// It starts at a cache line: vectors that lie across two lines take twice as long to read.
template <class X>
X* scratch(std::vector<X>& kept, int64_t count) {
    constexpr int64_t LINE = 64;  // bytes
    const int64_t room = count + LINE / int64_t(sizeof(X));
    if (int64_t(kept.size()) < room) kept.resize(room);
    return (X*)((uintptr_t(kept.data()) + LINE - 1) / LINE * LINE);
}

}  // namespace eddecode
