// Dot products with sixteen registers of eight floats (AVX2). A tile of four rows of W and three rows of x keeps twelve
// sums in registers. Weights are widened to float32 as they are loaded, and x has been before. A sum has eight lanes,
// whatever the tile, and they are added up in one order. See tiles.h; `strip` and `column` are what the rest of the code
// calls.
#pragma once

#include <algorithm>

#include "numbers.h"

namespace eddecode {

typedef float F4 __attribute__((vector_size(16)));

constexpr int64_t STEP = 8;

struct Float32 {
    using T = float;
    using X = float;
    static F8 get(const T* at) {
        F8 v;
        std::memcpy(&v, at, sizeof v);
        return v;
    }
};

// Where vpshufb takes the bytes of eight lanes from: two of zeros, then two of the next number.
alignas(32) static const uint8_t UPPER_HALVES[32] = {128, 128, 0, 1, 128, 128, 2,  3,  128, 128, 4,  5,  128, 128, 6,  7,
                                                     128, 128, 8, 9, 128, 128, 10, 11, 128, 128, 12, 13, 128, 128, 14, 15};

struct BFloat16 {
    using T = uint16_t;
    using X = float;
    static F8 get(const T* at) {  // every number into the upper half of a lane, by one instruction
        const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)at));
        F8 v;  // in assembly, since a register for the places would cost one for a sum
        asm("vpshufb %2, %1, %0" : "=x"(v) : "x"(twice), "m"(UPPER_HALVES));
        return v;
    }
};

#if defined(EDDECODE_HALF)
struct Float16 {
    using T = Half;
    using X = float;
    static F8 get(const T* at) { return (F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }
};
#endif

template <class D>
inline F8 get_part(const typename D::T* at, int64_t count) {
    typename D::T padded[STEP] = {};
    std::memcpy(padded, at, count * sizeof *at);
    return D::get(padded);
}

// The sums of the lanes of four vectors.
inline F4 sums_of(F8 a, F8 b, F8 c, F8 d) {
    const __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    const __m256 all = _mm256_hadd_ps(ab, cd);
    return (F4)_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// Four rows of W (or one), `apart` numbers from each other, times M rows of x (at most 3); out[m·ROWS + r·spread].
template <class D, int R, int M>
inline void tile(const typename D::T* w, int64_t apart, const float* x, int64_t K, float* out, int64_t spread) {
    F8 sum[M][R];
    EACH for (int m = 0; m < M; ++m)
        EACH for (int r = 0; r < R; ++r) sum[m][r] = F8{};
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) {
        F8 xs[M];
        EACH for (int m = 0; m < M; ++m) xs[m] = Float32::get(x + m * K + k);
        EACH for (int r = 0; r < R; ++r) {
            const F8 ws = D::get(w + r * apart + k);
            EACH for (int m = 0; m < M; ++m) sum[m][r] = fused(sum[m][r], ws, xs[m]);
        }
    }
    if (k < K) {
        F8 xs[M];
        EACH for (int m = 0; m < M; ++m) xs[m] = get_part<Float32>(x + m * K + k, K - k);
        EACH for (int r = 0; r < R; ++r) {
            const F8 ws = get_part<D>(w + r * apart + k, K - k);
            EACH for (int m = 0; m < M; ++m) sum[m][r] = fused(sum[m][r], ws, xs[m]);
        }
    }
    EACH for (int m = 0; m < M; ++m) {
        const F4 total = sums_of(sum[m][0], sum[m][1 % R], sum[m][2 % R], sum[m][3 % R]);
        EACH for (int r = 0; r < R; ++r) out[m * ROWS + r * spread] = total[r];
    }
}

// R rows of W times all M rows of x.
template <class D, int R>
inline void band(const typename D::T* w, int64_t apart, const float* x, int64_t K, int64_t M, float* out,
                 int64_t spread) {
    int64_t m = 0;
    for (; M - m == 3 || M - m > 4; m += 3) tile<D, R, 3>(w, apart, x + m * K, K, out + m * ROWS, spread);
    for (; M - m >= 2; m += 2) tile<D, R, 2>(w, apart, x + m * K, K, out + m * ROWS, spread);
    if (M - m == 1) tile<D, R, 1>(w, apart, x + m * K, K, out + m * ROWS, spread);
}

// `rows` rows of W (ROWS, or fewer at the end of W) times all M rows of x; out[m·ROWS + r]. The rows are read as four
// quarters side by side: four long streams are what the memory gives fastest, without any prefetching.
template <class D>
void strip(const typename D::T* w, const float* x, int64_t K, int64_t M, int rows, float* out) {
    // As many rows of x as stay in the second-level cache while they are multiplied with all rows of W.
    constexpr int64_t NEAR = 256 << 10;
    const int64_t most = std::max<int64_t>(3, NEAR / (K * int64_t(sizeof *x)) / 3 * 3);
    const int quarter = rows / 4;
    for (int64_t m = 0; m < M; m += most) {
        const int64_t count = std::min(most, M - m);
        for (int r = 0; r < quarter; ++r)
            band<D, 4>(w + r * K, quarter * K, x + m * K, K, count, out + m * ROWS + r, quarter);
        for (int r = 4 * quarter; r < rows; ++r) band<D, 1>(w + r * K, 0, x + m * K, K, count, out + m * ROWS + r, 0);
    }
}

// Up to ROWS rows of W times one row of x.
template <class D>
inline void column(const typename D::T* w, const float* x, int64_t K, int rows, float* out) {
    strip<D>(w, x, K, 1, rows, out);
}

}  // namespace eddecode
