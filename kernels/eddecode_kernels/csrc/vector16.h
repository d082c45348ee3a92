// Sixteen floats as one value. Where the machine has registers of that width the vector extension of gcc and clang is
// used as it is, and so it is on machines that this file does not know. gcc keeps such vectors in memory where registers
// are narrower: on AVX2 a value is two registers of eight lanes, with the same operations. The order of all sums and
// the rounding of every operation are the same in both.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define EDDECODE_NARROW 1
#endif
#if defined(__AVX512F__) || defined(EDDECODE_NARROW)
#include <immintrin.h>
#endif

namespace eddecode {

constexpr int64_t LANES = 16;

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef uint8_t B16 __attribute__((vector_size(16)));

#if defined(EDDECODE_NARROW)

#define EACH _Pragma("GCC unroll 4")  // gcc keeps an array in registers where its loops are unrolled early

struct I16 {
    I8 low, high;
};

struct F16 {
    F8 low, high;
};

// Half by half: gcc copies the whole through the stack.
inline F16 load(const float* at) {
    F16 x;
    std::memcpy(&x.low, at, sizeof x.low);
    std::memcpy(&x.high, at + 8, sizeof x.high);
    return x;
}

inline void store(float* at, F16 x) {
    std::memcpy(at, &x.low, sizeof x.low);
    std::memcpy(at + 8, &x.high, sizeof x.high);
}

inline F16 all(float x) { return {(F8)_mm256_set1_ps(x), (F8)_mm256_set1_ps(x)}; }

inline I16 bits_of(F16 x) { return {(I8)x.low, (I8)x.high}; }
inline F16 from_bits(I16 x) { return {(F8)x.low, (F8)x.high}; }
inline F16 join(F8 low, F8 high) { return {low, high}; }
inline F8 low_half(F16 x) { return x.low; }
inline F8 high_half(F16 x) { return x.high; }

// For both halves.
#define EDDECODE_UNARY(Result, Operand, op) \
    inline Result operator op(Operand a) { return {op a.low, op a.high}; }
#define EDDECODE_BINARY(Result, Operand, Scalar, op)                                                         \
    inline Result operator op(Operand a, Operand b) { return {a.low op b.low, a.high op b.high}; }           \
    inline Result operator op(Operand a, Scalar b) { return {a.low op b, a.high op b}; }                     \
    inline Result operator op(Scalar a, Operand b) { return {a op b.low, a op b.high}; }
EDDECODE_UNARY(F16, F16, -)
EDDECODE_BINARY(F16, F16, float, +)
EDDECODE_BINARY(F16, F16, float, -)
EDDECODE_BINARY(F16, F16, float, *)
EDDECODE_BINARY(F16, F16, float, /)
EDDECODE_BINARY(I16, F16, float, <)
EDDECODE_BINARY(I16, F16, float, >)
EDDECODE_BINARY(I16, F16, float, >=)
EDDECODE_BINARY(I16, F16, float, ==)
EDDECODE_BINARY(I16, F16, float, !=)
EDDECODE_BINARY(I16, I16, int32_t, +)
EDDECODE_BINARY(I16, I16, int32_t, &)
EDDECODE_BINARY(I16, I16, int32_t, |)
EDDECODE_BINARY(I16, I16, int32_t, <<)
EDDECODE_BINARY(I16, I16, int32_t, !=)
#undef EDDECODE_UNARY
#undef EDDECODE_BINARY
inline F16& operator+=(F16& a, F16 b) { return a = a + b; }
inline F16& operator*=(F16& a, F16 b) { return a = a * b; }
inline I16& operator|=(I16& a, I16 b) { return a = a | b; }

// Lane by lane a where the mask is set, else b.
inline F16 pick(I16 mask, F16 a, F16 b) {
    return {mask.low ? a.low : b.low, mask.high ? a.high : b.high};
}

// 16 flags of one byte each as a lane mask.
inline I16 load_flags(const uint8_t* at) {
    typedef uint8_t B8 __attribute__((vector_size(8)));
    B8 half[2];
    std::memcpy(half, at, sizeof half);
    return {__builtin_convertvector(half[0], I8) != 0, __builtin_convertvector(half[1], I8) != 0};
}

// To read and write single lanes.
template <class Number>
struct Array {
    Number lane[LANES];
    Number& operator[](int64_t i) { return lane[i]; }
    Number operator[](int64_t i) const { return lane[i]; }
};

inline Array<float> lanes_of(F16 x) {
    Array<float> to;
    std::memcpy(&to, &x, sizeof to);
    return to;
}

inline Array<int32_t> lanes_of(I16 x) {
    Array<int32_t> to;
    std::memcpy(&to, &x, sizeof to);
    return to;
}

inline F16 vector_of(const Array<float>& x) {
    F16 to;
    std::memcpy(&to, &x, sizeof to);
    return to;
}

// Eight doubles.
struct D8 {
    typedef double D4 __attribute__((vector_size(32)));
    D4 low, high;
};

inline D8& operator+=(D8& a, D8 b) { return a = {a.low + b.low, a.high + b.high}; }
inline D8 operator+(D8 a, D8 b) { return a += b; }

inline D8 as_doubles(F8 x) {
    typedef float F4 __attribute__((vector_size(16)));
    F4 half[2];
    std::memcpy(half, &x, sizeof x);
    return {__builtin_convertvector(half[0], D8::D4), __builtin_convertvector(half[1], D8::D4)};
}

inline double sum_of(D8 x) {  // halves onto halves
    const D8::D4 half = x.low + x.high;
    return (half[0] + half[2]) + (half[1] + half[3]);
}

// a·b + sum, rounded once. In assembly, since compilers do not see otherwise that a sum stays in its register.
inline F8 fused(F8 sum, F8 a, F8 b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}

inline F16 fused(F16 sum, F16 a, F16 b) { return {fused(sum.low, a.low, b.low), fused(sum.high, a.high, b.high)}; }

#else

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));

typedef double D8 __attribute__((vector_size(64)));

inline F16 load(const float* at) {
    F16 x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

inline void store(float* at, F16 x) { std::memcpy(at, &x, sizeof x); }

inline F16 all(float x) { return F16{} + x; }

inline I16 bits_of(F16 x) {
    I16 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline F16 from_bits(I16 bits) {
    F16 x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline F16 join(F8 low, F8 high) {
    const F8 half[2] = {low, high};
    F16 x;
    std::memcpy(&x, half, sizeof x);
    return x;
}

inline F8 low_half(F16 x) {
    F8 half[2];
    std::memcpy(half, &x, sizeof x);
    return half[0];
}

inline F8 high_half(F16 x) {
    F8 half[2];
    std::memcpy(half, &x, sizeof x);
    return half[1];
}

inline F16 pick(I16 mask, F16 a, F16 b) { return mask ? a : b; }

inline I16 load_flags(const uint8_t* at) {
    B16 bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    return __builtin_convertvector(bytes, I16) != 0;
}

inline F16 lanes_of(F16 x) { return x; }
inline I16 lanes_of(I16 x) { return x; }
inline F16 vector_of(F16 x) { return x; }

inline D8 as_doubles(F8 x) { return __builtin_convertvector(x, D8); }

inline double sum_of(D8 x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

inline F16 fused(F16 sum, F16 a, F16 b) {  // rounded once where the machine can
#if defined(__AVX512F__)
    return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return sum + a * b;
#endif
}

#endif

}  // namespace eddecode
