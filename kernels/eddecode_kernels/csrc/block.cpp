// A whole block of a Llama-shaped transformer in one call: normalise, attend, add, normalise, feed forward, add. Between
// its products nothing is left but small loops over what is in the cache already; in the library each of them is a call
// with buffers of its own, and together they take longer than the products do when many rows are decoded.
//
// One team of threads does the phases in turn; a phase is shared out by rows of W, by rows of x or by heads. Values between
// phases stay in float32 unless a product of the weights' type takes them. As in tiles.h, the order of every sum depends
// on sizes alone: a row has the same bits in any batch, alone or with tokens that are only guessed.

#include <vector>

#include "activation.h"
#include "attend.h"
#include "norm.h"

namespace eddecode {

struct Product {      // x·Wᵀ + bias, plus the low-rank x·Aᵀ·B for the rows that take it
    const void* w;    // (n, k)
    const float* bias;  // (n) or null
    const void* a;    // (rank, k) or null
    const float* b;   // (rank, n)
    int64_t n, k, rank;
};

struct Block {
    Product query, key, value, output, gate, up, down;
    const void *norm_in, *norm_mid, *norm_query, *norm_key;  // weights; the last two, of one head, may be null
    double epsilon;
    int64_t from_one, activation;  // 0: SiLU, 1: GELU by tanh
    int64_t heads, key_heads, size;  // of a head, in numbers
    float scale, softcap;
};

struct Pass {
    const void *cos, *sin;                    // (rows, tokens, turned)
    const int64_t *position, *first, *stop;   // (rows, tokens)
    int64_t rows, tokens, threads, turned;    // the first `turned` numbers of a head depend on its position
    int64_t changed, every;                   // rows changed, changed + every, … take the low-rank change; every 0: none
};

struct Cache {  // keys and values, (rows, key_heads, …, size); strides in elements
    void *keys, *values;
    int64_t key_row, key_head, value_row, value_head;
};

namespace {

constexpr int64_t CHUNK = 256;      // tokens at a time: their results fit a thread's stack and its cache
constexpr int64_t SMALL = 1 << 18;  // multiplications below which a second thread costs more than it brings

// Memory that lasts from call to call: fresh pages cost more than what is written to them. It begins with a line of the
// cache: vectors that lie across two lines take twice as long to read.
template <class X>
X* scratch(std::vector<X>& kept, int64_t count) {
    constexpr int64_t LINE = 64;  // bytes
    const int64_t room = count + LINE / int64_t(sizeof(X));
    if (int64_t(kept.size()) < room) kept.resize(room);
    return (X*)((uintptr_t(kept.data()) + LINE - 1) / LINE * LINE);
}

template <class T>
struct Scratch {
    std::vector<T> normed, queries, attended, middle, inner;
    std::vector<float> projected, thin;
};

// Which of a chunk's tokens take the low-rank change.
struct Changed {
    int64_t tokens[CHUNK], count = 0;
    Changed(const Pass& pass, int64_t row, int64_t tokens_of_row, int64_t M) {
        for (int64_t m = 0; pass.every > 0 && m < M; ++m) {
            const int64_t past = row + m / tokens_of_row - pass.changed;
            if (past >= 0 && past % pass.every == 0) tokens[count++] = m;
        }
    }
};

// thin[m·rank + j] = x·Aᵀ for all rows: few sums, cheaper than picking the rows that need them.
template <class D>
void thin_product(const Product& p, const typename D::T* x, int64_t M, float* thin) {
    constexpr int64_t SHARE = 16;  // rows of x: there are too few rows of A to share them out alone
#pragma omp for collapse(2) schedule(static) nowait
    for (int64_t j = 0; j < p.rank; j += ROWS)
        for (int64_t start = 0; start < M; start += SHARE) {
            float out[SHARE * ROWS];
            const int rows = int(std::min<int64_t>(ROWS, p.rank - j));
            const int64_t count = std::min(SHARE, M - start);
            strip<D>((const typename D::T*)p.a + j * p.k, x + start * p.k, p.k, count, rows, out);
            for (int64_t m = 0; m < count; ++m)
                std::memcpy(thin + (start + m) * p.rank + j, out + m * ROWS, rows * sizeof(float));
        }
}

// out[m·16 + r] += thin·B for M of the changed tokens and outputs n … n+15.
template <int M>
void add_thin(const Product& p, int64_t n, int64_t rows, const float* thin, const int64_t* tokens, float* out) {
    F16 sum[M];
    for (F16& s : sum) s = F16{};
    for (int64_t j = 0; j < p.rank; ++j) {
        const F16 b = widen_part(p.b + j * p.n + n, rows);
        for (int m = 0; m < M; ++m) sum[m] = Float32::multiply_add(sum[m], all(thin[tokens[m] * p.rank + j]), b);
    }
    for (int m = 0; m < M; ++m) store(out + tokens[m] * ROWS, load(out + tokens[m] * ROWS) + sum[m]);
}

// Outputs n … n+15 of all rows, out[m·16 + r]; what stands beyond the last output is not defined.
template <class D>
void outputs(const Product& p, int64_t n, const typename D::T* x, int64_t M, const float* thin, const Changed& changed,
             float* out) {
    const int rows = int(std::min<int64_t>(ROWS, p.n - n));
    strip<D>((const typename D::T*)p.w + n * p.k, x, p.k, M, rows, out);
    if (p.bias) {
        const F16 bias = widen_part(p.bias + n, rows);
        for (int64_t m = 0; m < M; ++m) store(out + m * ROWS, load(out + m * ROWS) + bias);
    }
    if (!p.rank) return;
    int64_t i = 0;
    for (; i + 4 <= changed.count; i += 4) add_thin<4>(p, n, rows, thin, changed.tokens + i, out);
    for (; i < changed.count; ++i) add_thin<1>(p, n, rows, thin, changed.tokens + i, out);
}

// done(n, rows, out) for every strip of a product, by the threads of the team; they do not wait for each other at the end.
template <class D, class Done>
void product(const Product& p, const typename D::T* x, int64_t M, const float* thin, const Changed& changed, Done done) {
#pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < p.n; n += ROWS) {
        float out[CHUNK * ROWS];
        outputs<D>(p, n, x, M, thin, changed, out);
        done(n, std::min<int64_t>(ROWS, p.n - n), out);
    }
}

// One head of one token: normalise if the model does, turn by position, round.
template <class T>
void place(const float* x, const void* norm, const Block& b, int64_t turned, const T* cos, const T* sin, T* to) {
    float head[1024];
    if (norm) {
        normalise(x, (const T*)norm, head, b.size, b.epsilon, b.from_one);
        x = head;
    }
    const int64_t half = turned / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = std::min(half - i, LANES);
        const F16 a = widen_part(x + i, count), c = widen_part(x + half + i, count);
        round_some(to + i, a * widen_part(cos + i, count) - c * widen_part(sin + i, count), count);
        round_some(to + half + i, c * widen_part(cos + half + i, count) + a * widen_part(sin + half + i, count), count);
    }
    for (int64_t i = turned; i < b.size; i += LANES) round_some(to + i, widen_part(x + i, b.size - i), b.size - i);
}

template <class D>
struct Run {
    using T = typename D::T;
    const Block& b;
    const Pass& pass;
    const Cache& cache;
    int64_t row, rows, token, tokens, M;  // this chunk
    const T* x;
    T* y;
    T *normed, *queries, *attended, *middle, *inner;
    float *projected, *thin;
    Changed changed{pass, row, tokens, M};

    int64_t at(int64_t m) const { return (row + m / tokens) * pass.tokens + token + m % tokens; }

    void normalised(const T* from, const void* weight) const {
        const int64_t size = b.query.k;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m)
            normalise(from + m * size, (const T*)weight, normed + m * size, size, b.epsilon, b.from_one);
    }

    // x·Aᵀ of the products that follow, one behind the other.
    template <class... Products>
    void thinned(const T* from, const Products&... products) const {
        if (!changed.count) return;
        float* to = thin;
        ((thin_product<D>(products, from, M, to), to += M * products.rank), ...);
#pragma omp barrier
    }

    void project() const {
        thinned(normed, b.query, b.key, b.value);
        const int64_t wide = b.query.n + b.key.n + b.value.n;
        int64_t offset = 0;
        const float* thin_of = thin;
        for (const Product* p : {&b.query, &b.key, &b.value}) {
            product<D>(*p, normed, M, thin_of, changed, [&](int64_t n, int64_t count, const float* out) {
                for (int64_t m = 0; m < M; ++m)
                    std::memcpy(projected + m * wide + offset + n, out + m * ROWS, count * sizeof(float));
            });
            offset += p->n, thin_of += M * p->rank;
        }
#pragma omp barrier
    }

    // Queries to their scratch, keys and values to their places in the cache.
    void turn() const {
        const int64_t wide = b.query.n + b.key.n + b.value.n, all_heads = b.heads + 2 * b.key_heads;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < M * all_heads; ++task) {
            const int64_t m = task / all_heads, head = task % all_heads, key = head - b.heads, value = key - b.key_heads;
            const float* from = projected + m * wide + head * b.size;
            const int64_t i = at(m), r = row + m / tokens;
            const int64_t angle = i * pass.turned;
            const T *cos = (const T*)pass.cos + angle, *sin = (const T*)pass.sin + angle;
            if (key < 0) {
                place(from, b.norm_query, b, pass.turned, cos, sin, queries + (m * b.heads + head) * b.size);
            } else if (value < 0) {
                T* to = (T*)cache.keys + r * cache.key_row + key * cache.key_head + pass.position[i] * b.size;
                place(from, b.norm_key, b, pass.turned, cos, sin, to);
            } else {
                T* to = (T*)cache.values + r * cache.value_row + value * cache.value_head + pass.position[i] * b.size;
                for (int64_t k = 0; k < b.size; k += LANES)
                    round_some(to + k, widen_part(from + k, b.size - k), b.size - k);
            }
        }
    }

    void attend() const {
        Attention a{};
        a.queries = queries, a.out = attended;
        a.keys = (const T*)cache.keys + row * cache.key_row, a.values = (const T*)cache.values + row * cache.value_row;
        a.first = pass.first + row * pass.tokens + token, a.stop = pass.stop + row * pass.tokens + token;
        a.rows = rows, a.tokens = tokens, a.heads = b.heads, a.key_heads = b.key_heads;
        a.key_size = a.value_size = b.size;
        a.query_token = b.heads * b.size, a.query_head = b.size, a.query_row = tokens * a.query_token;
        a.key_row = cache.key_row, a.key_head = cache.key_head;
        a.value_row = cache.value_row, a.value_head = cache.value_head;
        a.scale = b.scale, a.softcap = b.softcap;
        attend_together<D>(a);
    }

    // to = residual + product of x.
    void added(const Product& p, const T* from, const T* residual, T* to) const {
        thinned(from, p);
        product<D>(p, from, M, thin, changed, [&](int64_t n, int64_t count, const float* out) {
            for (int64_t m = 0; m < M; ++m)
                round_some(to + m * p.n + n, widen_part(residual + m * p.n + n, count) + load(out + m * ROWS), count);
        });
#pragma omp barrier
    }

    void gated() const {
        thinned(normed, b.gate, b.up);
        const float* thin_up = thin + M * b.gate.rank;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < b.gate.n; n += ROWS) {
            float gate[CHUNK * ROWS], up[CHUNK * ROWS];
            outputs<D>(b.gate, n, normed, M, thin, changed, gate);
            outputs<D>(b.up, n, normed, M, thin_up, changed, up);
            const int64_t count = std::min<int64_t>(ROWS, b.gate.n - n);
            for (int64_t m = 0; m < M; ++m) {
                const F16 g = load(gate + m * ROWS);
                round_some(inner + m * b.gate.n + n, (b.activation ? gelu_tanh(g) : silu(g)) * load(up + m * ROWS), count);
            }
        }
    }

    void operator()() const {
        normalised(x, b.norm_in);
        project();
        turn();
        attend();
        added(b.output, attended, x, middle);
        normalised(middle, b.norm_mid);
        gated();
        added(b.down, inner, middle, y);
    }
};

template <class D>
void run(const Block& b, const Pass& pass, const Cache& cache, const typename D::T* x, typename D::T* y) {
    static thread_local Scratch<typename D::T> s;
    const int64_t size = b.query.k, heads = b.heads * b.size, wide = b.query.n + b.key.n + b.value.n;
    const int64_t thin = b.query.rank + b.key.rank + b.value.rank + b.output.rank + b.gate.rank + b.up.rank + b.down.rank;
    const int64_t tokens = std::min(pass.tokens, CHUNK), rows = std::max<int64_t>(1, CHUNK / pass.tokens);
    const int64_t most = tokens * std::min(rows, pass.rows);
    auto *normed = scratch(s.normed, most * size), *queries = scratch(s.queries, most * heads),
         *attended = scratch(s.attended, most * heads), *middle = scratch(s.middle, most * size),
         *inner = scratch(s.inner, most * b.gate.n);
    float *projected = scratch(s.projected, most * wide), *thinned = scratch(s.thin, most * thin);
    const int64_t work = pass.rows * pass.tokens * size * (wide + heads + 3 * b.gate.n);
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1 && work >= SMALL)
    for (int64_t row = 0; row < pass.rows; row += rows)
        for (int64_t token = 0; token < pass.tokens; token += tokens) {
            const int64_t r = std::min(rows, pass.rows - row), t = std::min(tokens, pass.tokens - token);
            const int64_t skip = (row * pass.tokens + token) * size;
            Run<D>{b, pass, cache, row, r, token, t, r * t, x + skip, y + skip, normed, queries, attended, middle, inner,
                   projected, thinned}();
        }
}

}  // namespace
}  // namespace eddecode

using namespace eddecode;

// `count` blocks one after the other; x becomes what the last one gives.
#define EDDECODE_BLOCKS(name, D)                                                                                       \
    extern "C" void name(const Block* const* blocks, const Pass* const* passes, const Cache* caches, int64_t count,    \
                         D::T* x) {                                                                                    \
        for (int64_t i = 0; i < count; ++i) run<D>(*blocks[i], *passes[i], caches[i], x, x);                           \
    }

EDDECODE_BLOCKS(eddecode_blocks_f32, Float32)
EDDECODE_BLOCKS(eddecode_blocks_bf16, BFloat16)
