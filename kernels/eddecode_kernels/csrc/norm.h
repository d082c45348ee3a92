// Root-mean-square normalization of a row: x / sqrt(mean x² + ε), times a weight.
#pragma once

#include <cmath>

#include "tiles.h"

namespace eddecode {

// ROUND_FIRST: the normalized row is rounded to the weight's type before it is multiplied by the weight (Llama);
// OFFSET_ONE: it is multiplied by 1 + weight and rounded last (Gemma); ROUND_LAST: by the weight, and rounded last
// (OLMo 2). The numbers are those of decoder_cpu.py.
enum NormForm : int64_t { ROUND_FIRST = 0, OFFSET_ONE = 1, ROUND_LAST = 2 };

// Sums have a fixed order, whatever else is in the batch.
template <class X, class T, class Y>
void normalize(const X* x, const T* weight, Y* y, int64_t size, double epsilon, int64_t form) {
    F16 sums{};
    for (int64_t i = 0; i < size; i += LANES) {
        const F16 v = widen_part(x + i, size - i);
        sums += v * v;
    }
    float total = 0;
    const auto each = lanes_of(sums);
    for (int lane = 0; lane < LANES; ++lane) total += each[lane];
    const float scale = 1.0f / std::sqrt(total / float(size) + float(epsilon));
    for (int64_t i = 0; i < size; i += LANES) {
        F16 v = widen_part(x + i, size - i) * scale;
        const F16 w = widen_part(weight + i, size - i);
        if (form == OFFSET_ONE) {
            v *= 1.0f + w;
        } else if (form == ROUND_LAST) {
            v *= w;
        } else {
            T rounded[LANES];
            round_some(rounded, v, LANES);
            v = widen(rounded) * w;
        }
        round_some(y + i, v, size - i);
    }
}

}  // namespace eddecode
