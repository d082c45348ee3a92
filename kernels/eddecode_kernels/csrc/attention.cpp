// Attention as a call of its own, for models whose decoder layers are not compiled whole.

#include "attend.h"

namespace eddecode {
namespace {

constexpr int64_t SMALL = 1 << 15;  // multiplications below which a second thread costs more than it saves

template <class D>
void attend(const Attention& a) {
    int64_t work = 0;
    for (int64_t i = 0; i < a.rows * a.tokens; ++i) work += (a.key_end[i] - a.key_start[i]) * a.heads * a.key_size;
#pragma omp parallel num_threads(a.threads) if (a.threads > 1 && work >= SMALL)
    attend_in_team<D>(a);
}

}  // namespace
}  // namespace eddecode

extern "C" void eddecode_attend_f32(const eddecode::Attention* a) { eddecode::attend<eddecode::Float32>(*a); }
extern "C" void eddecode_attend_bf16(const eddecode::Attention* a) { eddecode::attend<eddecode::BFloat16>(*a); }
#if defined(EDDECODE_HALF)
extern "C" void eddecode_attend_f16(const eddecode::Attention* a) { eddecode::attend<eddecode::Float16>(*a); }
#endif
