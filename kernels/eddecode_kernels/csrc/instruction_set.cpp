// Which instructions the products were compiled for: those of the processor on which the library was built.

#include "vector16.h"

extern "C" const char* eddecode_instruction_set() {
#if defined(__AVX512BF16__)
    return "AVX-512 BF16";
#elif defined(__AVX512F__)
    return "AVX-512";
#elif defined(EDDECODE_NARROW)
    return "AVX2";
#elif defined(__x86_64__)
    return "x86-64 without AVX2";
#else
    return "128 bits";
#endif
}
