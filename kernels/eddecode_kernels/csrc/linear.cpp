// y = x·Wᵀ + b for few rows of x: most of the time of a decode step, and of its memory bandwidth. W stays as it is in
// the checkpoint, (N, K) row-major in float32, bfloat16 or float16, so nothing is packed or stored twice. Products are summed in
// float32 whatever the type of W. The order of every sum depends on K alone, not on how many rows x has or which thread
// computes it, so a row's result does not depend on the other rows.

#include "scratch.h"
#include "tiles.h"

namespace eddecode {
namespace {

constexpr int64_t SMALL = 1 << 16;  // multiplications below which a second thread costs more than it saves

template <class D, class Out>
void linear(const typename D::T* w, const typename D::T* x, const float* bias, Out* y, int64_t N, int64_t K, int64_t M,
            int64_t threads) {
    constexpr int64_t CHUNK = 256;  // rows of x at a time: their results fit the stack
    for (int64_t start = 0; start < M; start += CHUNK) {
        const int64_t m = std::min(CHUNK, M - start);
        const typename D::X* xs;
        if constexpr (std::is_same_v<typename D::X, typename D::T>) {
            xs = x + start * K;
        } else {
            static thread_local std::vector<typename D::X> kept;
            xs = as_input<D>(x + start * K, m * K, scratch(kept, m * K));
        }
        Out* ys = y + start * N;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && N * K * m >= SMALL)
        for (int64_t n = 0; n < N; n += ROWS) {
            float out[CHUNK * ROWS];
            const int rows = int(std::min<int64_t>(ROWS, N - n));
            strip<D>(w + n * K, xs, K, m, rows, out);
            for (int64_t i = 0; i < m; ++i)
                for (int r = 0; r < rows; ++r)
                    round_to(ys + i * N + n + r, bias ? out[i * ROWS + r] + bias[n + r] : out[i * ROWS + r]);
        }
    }
}

}  // namespace
}  // namespace eddecode

using namespace eddecode;

#define EDDECODE_LINEAR(name, D, In, Out)                                                                      \
    extern "C" void name(const In* w, const In* x, const float* bias, Out* y, int64_t n, int64_t k, int64_t m, \
                         int64_t threads) {                                                                    \
        linear<D>(w, x, bias, y, n, k, m, threads);                                                            \
    }

EDDECODE_LINEAR(eddecode_linear_f32_f32, Float32, float, float)
EDDECODE_LINEAR(eddecode_linear_bf16_f32, BFloat16, uint16_t, float)
EDDECODE_LINEAR(eddecode_linear_bf16_bf16, BFloat16, uint16_t, uint16_t)
#if defined(EDDECODE_HALF)
EDDECODE_LINEAR(eddecode_linear_f16_f32, Float16, Half, float)
EDDECODE_LINEAR(eddecode_linear_f16_f16, Float16, Half, Half)
#endif
