// RMSNorm as a call of its own. In torch it is six small operations, twice in every layer, and its reciprocal square
// root gives other last bits for few rows than for many.

#include "norm.h"

#define EDDECODE_RMS_NORM(name, T)                                                                                \
    extern "C" void name(const T* x, const T* w, T* y, int64_t rows, int64_t size, double eps, int64_t form) {    \
        for (int64_t row = 0; row < rows; ++row)                                                                  \
            eddecode::normalize(x + row * size, w, y + row * size, size, eps, form);                            \
    }

EDDECODE_RMS_NORM(eddecode_rms_norm_f32, float)
EDDECODE_RMS_NORM(eddecode_rms_norm_bf16, uint16_t)
#if defined(EDDECODE_HALF)
EDDECODE_RMS_NORM(eddecode_rms_norm_f16, eddecode::Half)
#endif
