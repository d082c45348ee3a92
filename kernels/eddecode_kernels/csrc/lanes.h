// Operations on sixteen floats at a time: one source for SSE, AVX2, AVX-512 and NEON. Nothing here depends on how wide
// the machine's registers are: the order of every sum is fixed by the code and contraction into fused multiply-adds is
// off, so that a row has the same sums on every machine and in every batch.
#pragma once

#include <cmath>
#include <limits>

#include "vector16.h"

namespace eddecode {

constexpr float INF = std::numeric_limits<float>::infinity();

inline float largest(F16 vector) {
    const auto x = lanes_of(vector);
    float top = x[0];
    for (int i = 1; i < LANES; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

inline float smallest(F16 vector) {
    const auto x = lanes_of(vector);
    float low = x[0];
    for (int i = 1; i < LANES; ++i) low = x[i] < low ? x[i] : low;
    return low;
}

inline float sum_of(F16 vector) {  // halves onto halves
    auto x = lanes_of(vector);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

// exp(x) for x <= 0, within 2 ulp; 0 below −87 (no subnormals); NaN stays NaN. x = n·ln2 + r, |r| <= ln2/2, and
// exp(r) = 1 + r + r²·q(r) with q the minimax fit of degree 4 (relative error 3e-9, far below float rounding).
inline F16 exp_nonpositive(F16 x) {
    const float shifter = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, held in the low bits
    F16 shifted = x * 1.44269504f + shifter;
    F16 n = shifted - shifter;
    F16 r = (x - n * 0.693145751953125f) - n * 1.42860677e-06f;  // the first product is exact: ln2 cut to 15 bits
    F16 q = all(0x1.6a23d0p-10f);
    q = q * r + 0x1.123a20p-7f;
    q = q * r + 0x1.5558f2p-5f;
    q = q * r + 0x1.555492p-3f;
    q = q * r + 0x1.fffffcp-2f;
    F16 mantissa = (q * (r * r) + r) + 1.0f;
    const F16 power = from_bits((bits_of(shifted) << 23) + 0x3f800000);  // 2^n: the shifter's own bits leave at the top
    return pick(x < -87.0f, F16{}, mantissa * power);
}

// A sum of floats in double precision, lane by lane.
struct Sum {
    D8 low{}, high{};

    void add(F16 x) {
        low += as_doubles(low_half(x));
        high += as_doubles(high_half(x));
    }

    double total() const { return sum_of(low + high); }
};

}  // namespace eddecode
