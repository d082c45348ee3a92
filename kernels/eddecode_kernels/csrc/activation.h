// Activation functions; every number by the same instructions, wherever it is in the array.
#pragma once

#include "lanes.h"

namespace eddecode {

inline F16 silu(F16 x) {  // x / (1 + e^−x)
    const F16 e = exp_nonpositive(pick(x < 0.0f, x, -x));
    return x * (pick(x < 0.0f, e, all(1.0f)) / (1.0f + e));
}

inline F16 gelu_tanh(F16 x) {  // x/2 · (1 + tanh u) = x / (1 + e^−2u), u = √(2/π)·(x + 0.044715·x³)
    const F16 twice = 1.59576912f * (x + 0.044715f * x * x * x);
    const F16 e = exp_nonpositive(pick(twice < 0.0f, twice, -twice));
    return x * (pick(twice < 0.0f, e, all(1.0f)) / (1.0f + e));
}

}  // namespace eddecode
