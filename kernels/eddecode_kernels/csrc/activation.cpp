// SiLU as a call of its own: torch takes another path at the end of an array, so that a row's last bits would depend on
// how many rows are in the batch.

#include "activation.h"
#include "tiles.h"

extern "C" void eddecode_silu_f32(const float* x, float* y, int64_t count) {
    using namespace eddecode;
    for (int64_t i = 0; i < count; i += LANES)
        round_some(y + i, silu(widen_part(x + i, count - i)), count - i);
}
