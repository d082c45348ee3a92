// Dot products where registers are as wide as sixteen floats, or of unknown width; see tiles.h. `strip` and `column` are
// what the rest of the code calls.
#pragma once

#include <algorithm>

#include "numbers.h"

namespace eddecode {

constexpr int AHEAD = 8;     // rows of W that are prefetched while several rows of x are multiplied

struct Float32 {
    using T = float;
    using X = T;
    using V = F16;
    static constexpr int STEP = 16;
    static V get(const T* at) { return load(at); }
    static F16 multiply_add(F16 sum, V w, V x) { return fused(sum, w, x); }
};

struct BFloat16 {
    using T = uint16_t;
    using X = T;
    static constexpr int STEP = 32;
#if defined(__AVX512BF16__)
    using V = __m512bh;
    static V get(const T* at) { return (__m512bh)_mm512_loadu_si512(at); }
    static F16 multiply_add(F16 sum, V w, V x) { return (F16)_mm512_dpbf16_ps((__m512)sum, w, x); }
#else
    using V = I16;  // two numbers a lane; one is the upper half of a float as it is, the other after a shift
    static V get(const T* at) {
        V v;
        std::memcpy(&v, at, sizeof v);
        return v;
    }
    static F16 multiply_add(F16 sum, V w, V x) {
        return sum + (F16)(w << 16) * (F16)(x << 16) + (F16)(w & ~0xffff) * (F16)(x & ~0xffff);
    }
#endif
};

#if defined(EDDECODE_HALF)
struct Float16 {
    using T = Half;
    using X = T;
    using V = F16;
    static constexpr int STEP = 16;
    static V get(const T* at) { return widen(at); }
    static F16 multiply_add(F16 sum, V w, V x) { return fused(sum, w, x); }
};
#endif

template <class D>
typename D::V get_part(const typename D::T* at, int64_t count) {
    typename D::T padded[D::STEP] = {};
    std::memcpy(padded, at, count * sizeof *at);
    return D::get(padded);
}

// Adds half of the lanes of a sum to the other half, for two vectors at once: lane l of the result belongs to b if
// bit H of l is set, else to a. Four rounds turn 16 vectors into one that holds the sum of vector i in lane i.
template <int H>
F16 fold(F16 a, F16 b) {
#if defined(__clang__)
#define LOW(l) (((l) & ~H) + ((l) & H ? 16 : 0))
#define EACH(of)                                                                                                       \
    of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14), of(15)
#define HIGH(l) (LOW(l) | H)
    return __builtin_shufflevector(a, b, EACH(LOW)) + __builtin_shufflevector(a, b, EACH(HIGH));
#undef LOW
#undef HIGH
#undef EACH
#else
    I16 low, high;
    for (int lane = 0; lane < LANES; ++lane) {
        low[lane] = (lane & ~H) + (lane & H ? LANES : 0);
        high[lane] = low[lane] | H;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
#endif
}

inline F16 sums_of(F16* v) {
    for (int i = 0; i < 8; ++i) v[i] = fold<8>(v[i], v[i + 8]);
    for (int i = 0; i < 4; ++i) v[i] = fold<4>(v[i], v[i + 4]);
    for (int i = 0; i < 2; ++i) v[i] = fold<2>(v[i], v[i + 2]);
    return fold<1>(v[0], v[1]);
}

// R rows of W times M rows of x, M·R <= 16; out[m·pitch + r].
template <class D, int R, int M, bool FETCH>
inline void tile(const typename D::T* w, const typename D::T* x, int64_t K, float* out, int64_t pitch) {
    F16 sum[LANES];
    for (F16& s : sum) s = F16{};
    int64_t k = 0;
    for (; k + D::STEP <= K; k += D::STEP) {
        typename D::V xs[M];
        for (int m = 0; m < M; ++m) xs[m] = D::get(x + m * K + k);
        for (int r = 0; r < R; ++r) {
            if (FETCH) __builtin_prefetch(w + (r + AHEAD) * K + k);  // has no effect past the end of W
            auto ws = D::get(w + r * K + k);
            for (int m = 0; m < M; ++m) sum[m * R + r] = D::multiply_add(sum[m * R + r], ws, xs[m]);
        }
    }
    if (k < K) {
        for (int r = 0; r < R; ++r) {
            auto ws = get_part<D>(w + r * K + k, K - k);
            for (int m = 0; m < M; ++m)
                sum[m * R + r] = D::multiply_add(sum[m * R + r], ws, get_part<D>(x + m * K + k, K - k));
        }
    }
    F16 total = sums_of(sum);
    for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r) out[m * pitch + r] = total[m * R + r];
}

// 16 rows of W times one row of x, one row of W after the other: memory is read in order, which is the fastest way.
// The prefetches are non-temporal: the second-level cache is left to data that is used again, such as keys.
template <class D>
inline void stream(const typename D::T* w, const typename D::T* x, int64_t K, float* out) {
    constexpr int64_t FAR = 8192;  // bytes ahead
    F16 sum[LANES];
    for (int r = 0; r < ROWS; ++r) {
        const typename D::T* row = w + r * K;
        F16 s{};
        int64_t k = 0;
        for (; k + D::STEP <= K; k += D::STEP) {
            __builtin_prefetch((const char*)(row + k) + FAR, 0, 0);
            s = D::multiply_add(s, D::get(row + k), D::get(x + k));
        }
        if (k < K) s = D::multiply_add(s, get_part<D>(row + k, K - k), get_part<D>(x + k, K - k));
        sum[r] = s;
    }
    store(out, sums_of(sum));
}

// Up to 16 rows of W times one row of x, all sums at once, for the short rows of keys. Rows beyond `rows` repeat the
// last one.
template <class D>
inline void column(const typename D::T* w, const typename D::T* x, int64_t K, int rows, float* out) {
    F16 sum[LANES];
    for (F16& s : sum) s = F16{};
    int64_t at[LANES];
    for (int r = 0; r < ROWS; ++r) at[r] = std::min(r, rows - 1) * K;
    int64_t k = 0;
    for (; k + D::STEP <= K; k += D::STEP) {
        const auto xs = D::get(x + k);
        for (int r = 0; r < ROWS; ++r) sum[r] = D::multiply_add(sum[r], D::get(w + at[r] + k), xs);
    }
    if (k < K) {
        const auto xs = get_part<D>(x + k, K - k);
        for (int r = 0; r < ROWS; ++r) sum[r] = D::multiply_add(sum[r], get_part<D>(w + at[r] + k, K - k), xs);
    }
    const F16 total = sums_of(sum);
    std::memcpy(out, &total, rows * sizeof *out);
}

// R rows of W times all M rows of x. The first tile of every four rows of W is the one that loads them from memory.
template <class D>
inline void band(const typename D::T* w, const typename D::T* x, int64_t K, int64_t M, int R, float* out) {
    int64_t m = 0;
    if (M >= 4) {
        for (int r = 0; r < R; r += 4) tile<D, 4, 4, true>(w + r * K, x, K, out + r, ROWS);
        m = 4;
    }
    for (; m + 4 <= M; m += 4)
        for (int r = 0; r < R; r += 4) tile<D, 4, 4, false>(w + r * K, x + m * K, K, out + m * ROWS + r, ROWS);
    for (int r = 0; r < R; r += 4) {
        const auto *wr = w + r * K, *xm = x + m * K;
        float* at = out + m * ROWS + r;
        if (M - m == 3) tile<D, 4, 3, true>(wr, xm, K, at, ROWS);
        if (M - m == 2) tile<D, 4, 2, false>(wr, xm, K, at, ROWS);
        if (M - m == 1) tile<D, 4, 1, false>(wr, xm, K, at, ROWS);
    }
}

// `rows` rows of W (16, or fewer at the end of W) times all M rows of x.
template <class D>
void strip(const typename D::T* w, const typename D::T* x, int64_t K, int64_t M, int rows, float* out) {
    if (M == 1 && rows == ROWS) return stream<D>(w, x, K, out);
    int r = 0;
    if (M == 2) {
        for (; r + 8 <= rows; r += 8) tile<D, 8, 2, true>(w + r * K, x, K, out + r, ROWS);
    } else {
        // As many rows of W as stay in the first-level cache while they are multiplied with all of x.
        constexpr int64_t NEAR = 24 << 10;
        const int64_t fit = NEAR / (K * int64_t(sizeof(typename D::T)));
        const int step = fit >= 16 ? 16 : fit >= 8 ? 8 : 4;
        for (; r + 4 <= rows; r += step) band<D>(w + r * K, x, K, M, std::min(step, (rows - r) / 4 * 4), out + r);
        r = std::min(r, rows / 4 * 4);
    }
    for (; r < rows; ++r)
        for (int64_t m = 0; m < M; ++m) tile<D, 1, 1, false>(w + r * K, x + m * K, K, out + m * ROWS + r, ROWS);
}

}  // namespace eddecode
