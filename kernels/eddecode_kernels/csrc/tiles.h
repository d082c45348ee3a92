// Dot products of few rows of x with many rows of W, both row-major: for linear layers and for the scores of attention.
// The order of every sum depends on K alone, not on how many rows there are or which thread computes them, so that a
// row's result has the same bits in any batch.
#pragma once

#include "vector16.h"

namespace eddecode {

// Rows of W that one thread takes at a time, a multiple of 16.
#if defined(EDDECODE_NARROW)
constexpr int ROWS = 32;
#else
constexpr int ROWS = 16;
#endif

}  // namespace eddecode

#if defined(EDDECODE_NARROW)
#include "tiles_narrow.h"
#else
#include "tiles_wide.h"
#endif

namespace eddecode {

// `count` numbers of x as `strip` and `column` read them: as they are, or converted into `room` once for all rows of W.
template <class D>
const typename D::X* as_input(const typename D::T* x, int64_t count, typename D::X* room) {
    if constexpr (std::is_same_v<typename D::X, typename D::T>) {
        return x;
    } else {
        for (int64_t i = 0; i < count; i += LANES) round_some(room + i, widen_part(x + i, count - i), count - i);
        return room;
    }
}

}  // namespace eddecode
