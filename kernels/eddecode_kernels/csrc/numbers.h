// Numbers of every type to float32 and back, sixteen at a time; a part of a vector is padded with zeros. bfloat16 is
// held as uint16_t and float16 as `Half`, which is there only where the machine converts it.
#pragma once

#include <algorithm>

#include "lanes.h"

#if defined(__F16C__)
#define EDDECODE_HALF 1
#include <immintrin.h>
#endif

namespace eddecode {

struct Half {
    uint16_t bits;
};

inline F16 widen(const float* at) { return load(at); }

inline F16 widen(const uint16_t* at) {
#if defined(EDDECODE_NARROW)
    const __m256i bits = _mm256_loadu_si256((const __m256i*)at);
    const auto half = [](__m128i x) { return (F8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16); };
    return {half(_mm256_castsi256_si128(bits)), half(_mm256_extracti128_si256(bits, 1))};
#else
    typedef uint16_t H16 __attribute__((vector_size(32)));
    H16 halves;
    std::memcpy(&halves, at, sizeof halves);
    return (F16)(__builtin_convertvector(halves, I16) << 16);
#endif
}

#if defined(EDDECODE_HALF)
inline F16 widen(const Half* at) {
    return join((F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)),
                (F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(at + 8))));
}
#endif

template <class T>
F16 widen_part(const T* at, int64_t count) {
    if (count >= LANES) return widen(at);
    T padded[LANES] = {};
    std::memcpy(padded, at, count * sizeof *at);
    return widen(padded);
}

inline void round_to(float* at, float x) { *at = x; }

inline void round_to(uint16_t* at, float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    *at = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

#if defined(EDDECODE_HALF)
inline void round_to(Half* at, float x) { at->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#endif

#if defined(EDDECODE_NARROW)

inline __m256i rounded(F16 x) {  // sixteen bfloat16
    const auto half = [](F8 v) {
        typedef uint32_t U8 __attribute__((vector_size(32)));
        const U8 bits = (U8)v;
        return (__m256i)(v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : U8{} + 0x7fc0);
    };
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(half(x.low), half(x.high)), 0xd8);
}

// The branch for whole vectors saves a call of memcpy.
inline void round_some(float* at, F16 x, int64_t count) {
    if (count >= LANES) return store(at, x);
    std::memcpy(at, &x, count * sizeof *at);
}

inline void round_some(uint16_t* at, F16 x, int64_t count) {
    const __m256i bits = rounded(x);
    if (count >= LANES) return _mm256_storeu_si256((__m256i*)at, bits);
    std::memcpy(at, &bits, count * sizeof *at);
}

#else

inline void round_some(float* at, F16 x, int64_t count) { std::memcpy(at, &x, std::min(count, LANES) * sizeof *at); }

inline void round_some(uint16_t* at, F16 x, int64_t count) {
    typedef uint16_t H16 __attribute__((vector_size(32)));
    typedef uint32_t U16 __attribute__((vector_size(64)));
    U16 bits = (U16)x;
    bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : U16{} + 0x7fc0;
    const H16 halves = __builtin_convertvector(bits, H16);
    std::memcpy(at, &halves, std::min(count, LANES) * sizeof *at);
}

#endif

#if defined(EDDECODE_HALF)
inline void round_some(Half* at, F16 x, int64_t count) {
    const __m128i bits[2] = {_mm256_cvtps_ph((__m256)low_half(x), _MM_FROUND_TO_NEAREST_INT),
                             _mm256_cvtps_ph((__m256)high_half(x), _MM_FROUND_TO_NEAREST_INT)};
    if (count >= LANES) {
        _mm_storeu_si128((__m128i*)at, bits[0]);
        _mm_storeu_si128((__m128i*)(at + 8), bits[1]);
    } else {
        std::memcpy(at, bits, count * sizeof *at);
    }
}
#endif

}  // namespace eddecode
