// A whole decoder layer of a Llama-shaped transformer in one call: normalize, attend, add, normalize, feed forward,
// add. Between the matrix products only small loops remain, over data that is in the cache already. In torch each of
// them is a call with buffers of its own, and with many rows they take longer than the matrix products.
//
// One team of threads runs the phases one after the other. A phase is divided by rows of W, by rows of x or by heads.
// Values between phases stay in float32 unless they are the input of a matrix product. As in tiles.h, the order of
// every sum depends on sizes alone: a row has the same bits in any batch, and whether its tokens come one by one or
// together.

#include "activation.h"
#include "attend.h"
#include "norm.h"
#include "scratch.h"

namespace eddecode {

// The structs below are mirrored field for field by decoder_cpu.py.

struct Linear {           // x·Wᵀ + bias, plus the low-rank x·Aᵀ·B for the rows that take it
    const void* weight;   // (n, k)
    const float* bias;    // (n) or null
    const void* lora_a;   // (rank, k) or null
    const float* lora_b;  // (rank, n)
    int64_t n, k, rank;
};

struct Layer {
    Linear query, key, value, output, gate, up, down;
    // Weights, each of which may be null. The norms of queries and keys are of every head, or of all heads together; the
    // last two are of what is added to the residual.
    const void *input_norm, *post_attention_norm, *query_norm, *key_norm, *attention_out_norm, *feed_forward_out_norm;
    double norm_epsilon;
    int64_t norm_form, activation;  // see `NormForm`; activation 0: SiLU, 1: GELU by tanh
    int64_t heads, kv_heads, head_dim;
    int64_t norm_together, rotary;  // flags: the norms of queries and keys are of all heads; these are rotated
    float scale, softcap, residual_scale;
};

struct Context {
    const void *cos, *sin;                                // (rows, tokens, rotary_dim)
    const int64_t *positions, *key_start, *key_end;       // (rows, tokens)
    int64_t rows, tokens, threads;
    int64_t rotary_dim;                                   // the first numbers of a head, which are rotated
    int64_t float_angles;                                 // whether cos and sin are float32, and not of the layers' type
    int64_t lora_start, lora_step;                        // rows start, start + step, … add the low-rank term; 0: none
};

struct Cache {  // keys and values, (rows, kv_heads, …, head_dim); strides in elements
    void *keys, *values;
    int64_t key_row, key_head, value_row, value_head;
};

namespace {

constexpr int64_t CHUNK = 256;      // tokens at a time: their results fit a thread's stack and its cache
constexpr int64_t SMALL = 1 << 18;  // multiplications below which a second thread costs more than it saves

template <class T>
struct Scratch {
    std::vector<T> normed, queries, attended, middle, inner;
    std::vector<float> projected, thin, input, added;
};

// Which of a chunk's tokens add the low-rank term.
struct LoraTokens {
    int64_t tokens[CHUNK], count = 0;
    LoraTokens(const Context& context, int64_t row, int64_t tokens_of_row, int64_t M) {
        for (int64_t m = 0; context.lora_step > 0 && m < M; ++m) {
            const int64_t past = row + m / tokens_of_row - context.lora_start;
            if (past >= 0 && past % context.lora_step == 0) tokens[count++] = m;
        }
    }
};

// thin[m·rank + j] = x·Aᵀ for all rows: few sums, cheaper than picking the rows that need them.
template <class D>
void multiply_lora_a(const Linear& linear, const typename D::X* x, int64_t M, float* thin) {
    constexpr int64_t SHARE = 16;  // rows of x per task: A alone has too few rows to divide among the threads
#pragma omp for collapse(2) schedule(static) nowait
    for (int64_t j = 0; j < linear.rank; j += ROWS)
        for (int64_t start = 0; start < M; start += SHARE) {
            float out[SHARE * ROWS];
            const int rows = int(std::min<int64_t>(ROWS, linear.rank - j));
            const int64_t count = std::min(SHARE, M - start);
            const auto* a = (const typename D::T*)linear.lora_a + j * linear.k;
            strip<D>(a, x + start * linear.k, linear.k, count, rows, out);
            for (int64_t m = 0; m < count; ++m)
                std::memcpy(thin + (start + m) * linear.rank + j, out + m * ROWS, rows * sizeof(float));
        }
}

// out[m·ROWS + r] += thin·B for M of the tokens that add it, and outputs n … n+15.
template <int M>
void add_lora(const Linear& linear, int64_t n, int64_t rows, const float* thin, const int64_t* tokens, float* out) {
    F16 sum[M];
    for (F16& s : sum) s = F16{};
    for (int64_t j = 0; j < linear.rank; ++j) {
        const F16 b = widen_part(linear.lora_b + j * linear.n + n, rows);
        for (int m = 0; m < M; ++m) sum[m] = fused(sum[m], all(thin[tokens[m] * linear.rank + j]), b);
    }
    for (int m = 0; m < M; ++m) store(out + tokens[m] * ROWS, load(out + tokens[m] * ROWS) + sum[m]);
}

// Bias and low-rank term of outputs n … n+15, of which there are `rows`.
inline void add_to_outputs(const Linear& linear, int64_t n, int64_t rows, int64_t M, const float* thin,
                           const LoraTokens& lora, float* out) {
    if (linear.bias) {
        const F16 bias = widen_part(linear.bias + n, rows);
        for (int64_t m = 0; m < M; ++m) store(out + m * ROWS, load(out + m * ROWS) + bias);
    }
    if (!linear.rank) return;
    int64_t i = 0;
    for (; i + 4 <= lora.count; i += 4) add_lora<4>(linear, n, rows, thin, lora.tokens + i, out);
    for (; i < lora.count; ++i) add_lora<1>(linear, n, rows, thin, lora.tokens + i, out);
}

// Outputs n … n+ROWS−1 of all rows, out[m·ROWS + r]; numbers beyond the last output are not defined.
template <class D>
void outputs(const Linear& linear, int64_t n, const typename D::X* x, int64_t M, const float* thin,
             const LoraTokens& lora, float* out) {
    const int rows = int(std::min<int64_t>(ROWS, linear.n - n));
    strip<D>((const typename D::T*)linear.weight + n * linear.k, x, linear.k, M, rows, out);
    for (int64_t r = 0; r < rows; r += LANES) add_to_outputs(linear, n + r, rows - r, M, thin, lora, out + r);
}

// done(n, rows, out) for every ROWS outputs of a linear layer, by the threads of the team; no barrier at the end.
template <class D, class Done>
void multiply(const Linear& linear, const typename D::X* x, int64_t M, const float* thin, const LoraTokens& lora,
              Done done) {
#pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < linear.n; n += ROWS) {
        float out[CHUNK * ROWS];
        outputs<D>(linear, n, x, M, thin, lora, out);
        done(n, std::min<int64_t>(ROWS, linear.n - n), out);
    }
}

// One head of one token: normalize if the model does, rotate by its position, round.
template <class T, class Angle>
void rotate(const float* x, const void* norm, const Layer& layer, int64_t rotary_dim, const Angle* cos,
            const Angle* sin, T* to) {
    float head[1024];
    if (norm) {
        normalize(x, (const T*)norm, head, layer.head_dim, layer.norm_epsilon, layer.norm_form);
        x = head;
    }
    const int64_t half = rotary_dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = std::min(half - i, LANES);
        const F16 a = widen_part(x + i, count), c = widen_part(x + half + i, count);
        round_some(to + i, a * widen_part(cos + i, count) - c * widen_part(sin + i, count), count);
        round_some(to + half + i, c * widen_part(cos + half + i, count) + a * widen_part(sin + half + i, count), count);
    }
    for (int64_t i = rotary_dim; i < layer.head_dim; i += LANES)
        round_some(to + i, widen_part(x + i, layer.head_dim - i), layer.head_dim - i);
}

// One chunk of tokens through one layer.
template <class D>
struct Chunk {
    using T = typename D::T;
    using X = typename D::X;
    const Layer& layer;
    const Context& context;
    const Cache& cache;
    int64_t row, rows, token, tokens, M;  // M = rows·tokens
    const T* x;
    T* y;
    T *normed, *queries, *attended, *middle, *inner;
    float *projected, *thin, *added;
    X* input;
    LoraTokens lora{context, row, tokens, M};

    int64_t at(int64_t m) const { return (row + m / tokens) * context.tokens + token + m % tokens; }

    // The rows normalized, or as they are where the layer has no such norm.
    const T* normalized(const T* from, const void* weight) const {
        if (!weight) return from;
        const int64_t size = layer.query.k;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m)
            normalize(from + m * size, (const T*)weight, normed + m * size, size, layer.norm_epsilon, layer.norm_form);
        return normed;
    }

    // What the products read; see `as_input`.
    const X* as_inputs(const T* from, int64_t size) const {
        if constexpr (std::is_same_v<X, T>) return from;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) as_input<D>(from + m * size, size, input + m * size);
        return input;
    }

    // x·Aᵀ of the linear layers that follow, one behind the other.
    template <class... Linears>
    void prepare_lora(const X* from, const Linears&... linears) const {
        if (!lora.count) return;
        float* to = thin;
        ((multiply_lora_a<D>(linears, from, M, to), to += M * linears.rank), ...);
#pragma omp barrier
    }

    void project(const T* rows_in) const {
        const X* from = as_inputs(rows_in, layer.query.k);
        prepare_lora(from, layer.query, layer.key, layer.value);
        const int64_t wide = layer.query.n + layer.key.n + layer.value.n;
        int64_t offset = 0;
        const float* thin_of = thin;
        for (const Linear* linear : {&layer.query, &layer.key, &layer.value}) {
            multiply<D>(*linear, from, M, thin_of, lora, [&](int64_t n, int64_t count, const float* out) {
                for (int64_t m = 0; m < M; ++m)
                    std::memcpy(projected + m * wide + offset + n, out + m * ROWS, count * sizeof(float));
            });
            offset += linear->n, thin_of += M * linear->rank;
        }
#pragma omp barrier
    }

    // Norms of all queries and of all keys of a token together, where the layer has such (OLMo 2).
    void normalize_together() const {
        if (!layer.norm_together) return;
        const int64_t wide = layer.query.n + layer.key.n + layer.value.n;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) {
            float *query = projected + m * wide, *key = query + layer.query.n;
            if (layer.query_norm)
                normalize(query, (const T*)layer.query_norm, query, layer.query.n, layer.norm_epsilon, layer.norm_form);
            if (layer.key_norm)
                normalize(key, (const T*)layer.key_norm, key, layer.key.n, layer.norm_epsilon, layer.norm_form);
        }
    }

    // Rotated queries to their scratch, rotated keys and values to their places in the cache.
    void rotate_and_store() const {
        const int64_t wide = layer.query.n + layer.key.n + layer.value.n, all_heads = layer.heads + 2 * layer.kv_heads;
        const int64_t size = layer.head_dim, rotated = layer.rotary ? context.rotary_dim : 0;
        const void* query_norm = layer.norm_together ? nullptr : layer.query_norm;
        const void* key_norm = layer.norm_together ? nullptr : layer.key_norm;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < M * all_heads; ++task) {
            const int64_t m = task / all_heads, head = task % all_heads;
            const int64_t key = head - layer.heads, value = key - layer.kv_heads;
            const float* from = projected + m * wide + head * size;
            const int64_t i = at(m), r = row + m / tokens, position = context.positions[i];
            const int64_t angle = i * context.rotary_dim;
            const auto rotate_to = [&](const void* norm, T* to) {
                if (context.float_angles)
                    rotate(from, norm, layer, rotated, (const float*)context.cos + angle,
                           (const float*)context.sin + angle, to);
                else
                    rotate(from, norm, layer, rotated, (const T*)context.cos + angle, (const T*)context.sin + angle, to);
            };
            if (key < 0) {
                rotate_to(query_norm, queries + (m * layer.heads + head) * size);
            } else if (value < 0) {
                rotate_to(key_norm, (T*)cache.keys + r * cache.key_row + key * cache.key_head + position * size);
            } else {
                T* to = (T*)cache.values + r * cache.value_row + value * cache.value_head + position * size;
                for (int64_t k = 0; k < size; k += LANES) round_some(to + k, widen_part(from + k, size - k), size - k);
            }
        }
    }

    void attend() const {
        Attention a{};
        a.queries = queries, a.out = attended;
        a.keys = (const T*)cache.keys + row * cache.key_row, a.values = (const T*)cache.values + row * cache.value_row;
        a.key_start = context.key_start + row * context.tokens + token;
        a.key_end = context.key_end + row * context.tokens + token;
        a.rows = rows, a.tokens = tokens, a.heads = layer.heads, a.kv_heads = layer.kv_heads;
        a.key_size = a.value_size = layer.head_dim;
        a.query_head = layer.head_dim, a.query_token = layer.heads * a.query_head, a.query_row = tokens * a.query_token;
        a.key_row = cache.key_row, a.key_head = cache.key_head;
        a.value_row = cache.value_row, a.value_head = cache.value_head;
        a.scale = layer.scale, a.softcap = layer.softcap;
        attend_in_team<D>(a);
    }

    // to = residual + linear layer of `from`, which is normalized and scaled where the layer does so.
    void multiply_and_add(const Linear& linear, const T* from, const void* norm, const T* residual, T* to) const {
        const X* read = as_inputs(from, linear.k);
        prepare_lora(read, linear);
        if (norm) return normalize_and_add(linear, read, norm, residual, to);
        multiply<D>(linear, read, M, thin, lora, [&](int64_t n, int64_t count, const float* out) {
            for (int64_t m = 0; m < M; ++m)
                for (int64_t r = 0; r < count; r += LANES) {
                    const int64_t at = m * linear.n + n + r;
                    const F16 added = load(out + m * ROWS + r) * layer.residual_scale;
                    round_some(to + at, widen_part(residual + at, count - r) + added, count - r);
                }
        });
#pragma omp barrier
    }

    void normalize_and_add(const Linear& linear, const X* read, const void* norm, const T* residual, T* to) const {
        const int64_t size = linear.n;
        multiply<D>(linear, read, M, thin, lora, [&](int64_t n, int64_t count, const float* out) {
            for (int64_t m = 0; m < M; ++m) std::memcpy(added + m * size + n, out + m * ROWS, count * sizeof(float));
        });
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) {
            float* row_of = added + m * size;
            normalize(row_of, (const T*)norm, row_of, size, layer.norm_epsilon, layer.norm_form);
            for (int64_t i = 0; i < size; i += LANES) {
                const F16 sum = widen_part(row_of + i, size - i) * layer.residual_scale;
                round_some(to + m * size + i, widen_part(residual + m * size + i, size - i) + sum, size - i);
            }
        }
    }

    void gate_and_multiply(const T* rows_in) const {
        const X* from = as_inputs(rows_in, layer.gate.k);
        prepare_lora(from, layer.gate, layer.up);
        const float* thin_up = thin + M * layer.gate.rank;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < layer.gate.n; n += ROWS) {
            float gate[CHUNK * ROWS], up[CHUNK * ROWS];
            outputs<D>(layer.gate, n, from, M, thin, lora, gate);
            outputs<D>(layer.up, n, from, M, thin_up, lora, up);
            const int64_t count = std::min<int64_t>(ROWS, layer.gate.n - n);
            for (int64_t m = 0; m < M; ++m)
                for (int64_t r = 0; r < count; r += LANES) {
                    const F16 g = load(gate + m * ROWS + r);
                    const F16 activated = layer.activation ? gelu_tanh(g) : silu(g);
                    round_some(inner + m * layer.gate.n + n + r, activated * load(up + m * ROWS + r), count - r);
                }
        }
    }

    void operator()() const {
        project(normalized(x, layer.input_norm));
        normalize_together();
        rotate_and_store();
        attend();
        multiply_and_add(layer.output, attended, layer.attention_out_norm, x, middle);
        gate_and_multiply(normalized(middle, layer.post_attention_norm));
        multiply_and_add(layer.down, inner, layer.feed_forward_out_norm, middle, y);
    }
};

template <class D>
void run(const Layer& layer, const Context& context, const Cache& cache, const typename D::T* x, typename D::T* y) {
    static thread_local Scratch<typename D::T> s;
    const int64_t size = layer.query.k, heads = layer.heads * layer.head_dim;
    const int64_t wide = layer.query.n + layer.key.n + layer.value.n;
    const int64_t rank = layer.query.rank + layer.key.rank + layer.value.rank + layer.output.rank + layer.gate.rank +
                         layer.up.rank + layer.down.rank;
    const int64_t tokens = std::min(context.tokens, CHUNK), rows = std::max<int64_t>(1, CHUNK / context.tokens);
    const int64_t most = tokens * std::min(rows, context.rows);
    auto *normed = scratch(s.normed, most * size), *queries = scratch(s.queries, most * heads),
         *attended = scratch(s.attended, most * heads), *middle = scratch(s.middle, most * size),
         *inner = scratch(s.inner, most * layer.gate.n);
    float *projected = scratch(s.projected, most * wide), *thin = scratch(s.thin, most * rank);
    float* added = layer.attention_out_norm || layer.feed_forward_out_norm ? scratch(s.added, most * size) : nullptr;
    typename D::X* input = nullptr;
    if constexpr (!std::is_same_v<typename D::X, typename D::T>)
        input = scratch(s.input, most * std::max(size, std::max(heads, layer.gate.n)));
    const int64_t work = context.rows * context.tokens * size * (wide + heads + 3 * layer.gate.n);
#pragma omp parallel num_threads(context.threads) if (context.threads > 1 && work >= SMALL)
    for (int64_t row = 0; row < context.rows; row += rows)
        for (int64_t token = 0; token < context.tokens; token += tokens) {
            const int64_t r = std::min(rows, context.rows - row), t = std::min(tokens, context.tokens - token);
            const int64_t skip = (row * context.tokens + token) * size;
            Chunk<D>{layer, context, cache, row, r, token, t, r * t, x + skip, y + skip, normed, queries, attended,
                     middle, inner, projected, thin, added, input}();
        }
}

}  // namespace
}  // namespace eddecode

using namespace eddecode;

// `count` layers one after the other; x is overwritten with what the last one gives.
#define EDDECODE_DECODER_LAYERS(name, D)                                                                             \
    extern "C" void name(const Layer* const* layers, const Context* const* contexts, const Cache* caches,            \
                         int64_t count, D::T* x) {                                                                   \
        for (int64_t i = 0; i < count; ++i) run<D>(*layers[i], *contexts[i], caches[i], x, x);                       \
    }

EDDECODE_DECODER_LAYERS(eddecode_decoder_layers_f32, Float32)
EDDECODE_DECODER_LAYERS(eddecode_decoder_layers_bf16, BFloat16)
#if defined(EDDECODE_HALF)
EDDECODE_DECODER_LAYERS(eddecode_decoder_layers_f16, Float16)
#endif
