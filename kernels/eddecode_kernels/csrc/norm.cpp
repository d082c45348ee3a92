// Normalisation as a call of its own. It is six small operations in the library, at every layer twice; and the library's
// reciprocal root gives other last bits for few rows than for many.

#include "norm.h"

#define EDDECODE_RMS_NORM(name, T)                                                                              \
    extern "C" void name(const T* x, const T* w, T* y, int64_t rows, int64_t size, double eps, int64_t from_one) { \
        for (int64_t row = 0; row < rows; ++row)                                                                \
            eddecode::normalise(x + row * size, w, y + row * size, size, eps, from_one);                        \
    }

EDDECODE_RMS_NORM(eddecode_rms_norm_f32, float)
EDDECODE_RMS_NORM(eddecode_rms_norm_bf16, uint16_t)
