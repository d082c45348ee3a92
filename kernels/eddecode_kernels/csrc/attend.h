// Attention of new tokens over the slots of a cache. Each row has a length of its own, so each query has a range of
// keys that it sees, and nothing else is read. No mask is built, no head is repeated, scores and weights stay in
// float32. The order of a query's sums depends on its own range alone: the same bits in any batch.

#pragma once

#include <cmath>
#include <vector>

#include "tiles.h"

namespace eddecode {

struct Attention {
    const void *queries, *keys, *values;
    void* out;                                            // (rows, tokens, heads, value_size), contiguous
    const int64_t *key_start, *key_end;                   // (rows, tokens); keys start <= position < end are seen
    int64_t rows, tokens, heads, kv_heads, key_size, value_size;
    int64_t query_row, query_head, query_token;           // strides in elements; the innermost ones are 1,
    int64_t key_row, key_head, value_row, value_head;     // and a key follows the one before it at once
    int64_t threads;
    float scale, softcap;                                 // softcap 0 is none
};

constexpr int TOGETHER = 4;  // queries of one head of keys that are computed together: keys are read once
constexpr int WIDE = 4;      // vectors of a value that are summed at a time

constexpr int64_t FETCHED = 64;  // keys of the next head that are prefetched; the hardware prefetches the rest

inline void fetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)from + at);
}

struct Query {
    int64_t token, head, first, stop;
};

#if defined(EDDECODE_NARROW)
constexpr int64_t AT_A_TIME = 8;  // keys that are scored between two prefetches; few, or the loads wait for prefetches
#else
constexpr int64_t AT_A_TIME = ROWS;
#endif

// scores[m·pitch + position − first], for all positions that any of the queries sees. The values of these positions are
// prefetched meanwhile: they are read next, and are elsewhere in memory.
template <class D>
void score(const typename D::T* keys, const typename D::X* packed, int64_t K, int M, int64_t first, int64_t stop,
           float* scores, int64_t pitch, const char* values, int64_t value_bytes) {
    for (int64_t at = first; at < stop; at += AT_A_TIME) {
        const int rows = int(std::min<int64_t>(AT_A_TIME, stop - at));
        fetch(values + at * value_bytes, rows * value_bytes);
        if (M == 1) {
            column<D>(keys + at * K, packed, K, rows, scores + at - first);
            continue;
        }
        float out[TOGETHER * ROWS];
        strip<D>(keys + at * K, packed, K, M, rows, out);
        for (int m = 0; m < M; ++m)
            for (int r = 0; r < rows; ++r) scores[m * pitch + at - first + r] = out[m * ROWS + r];
    }
}

// Turns the scores of one query into softmax weights that are not divided by their sum; returns the sum.
inline float weigh(float* scores, int64_t span, int64_t from, int64_t to, float scale, float softcap) {
    const int64_t padded = (span + LANES - 1) / LANES * LANES;
    for (int64_t i = 0; i < from; ++i) scores[i] = -INF;
    for (int64_t i = to; i < padded; ++i) scores[i] = -INF;
    F16 tops = all(-INF);
    for (int64_t i = 0; i < padded; i += LANES) {
        F16 s = load(scores + i) * scale;
        if (softcap > 0) {
            auto each = lanes_of(s);
            for (int lane = 0; lane < LANES; ++lane) each[lane] = softcap * std::tanh(each[lane] / softcap);
            for (int lane = 0; lane < LANES; ++lane)
                if (i + lane < from || i + lane >= to) each[lane] = -INF;  // the softcap has made −inf finite
            s = vector_of(each);
        }
        store(scores + i, s);
        tops = pick(s > tops, s, tops);
    }
    const float top = largest(tops);
    F16 sum{};
    for (int64_t i = 0; i < padded; i += LANES) {
        F16 weight = exp_nonpositive(load(scores + i) - top);
        store(scores + i, weight);
        sum += weight;
    }
    return sum_of(sum);
}

// The keys that are read next, of another head or row: prefetched while values are summed.
struct Following {
    const char* keys = nullptr;
    int64_t bytes = 0;  // of one position
    void fetch(int64_t position) const { eddecode::fetch(keys + position * bytes, bytes); }
};

#if defined(EDDECODE_NARROW)

// The same as `gather` for V vectors: as many sums as there are registers for.
template <class T, int M, int V>
void gather_some(const T* values, int64_t size, int64_t last, const float* weights, int64_t pitch, int64_t first,
                 int64_t stop, F16 (*sums)[WIDE], const Following& following) {
    F16 sum[M][V];
    EACH for (int m = 0; m < M; ++m)
        EACH for (int v = 0; v < V; ++v) sum[m][v] = F16{};
    for (int64_t at = first; at < stop; ++at) {
        const T* value = values + at * size;
        following.fetch(at - first);
        EACH for (int v = 0; v < V; ++v) {
            const F16 x = V == 1 ? widen_part(value, last) : widen(value + v * LANES);
            EACH for (int m = 0; m < M; ++m) sum[m][v] = fused(sum[m][v], all(weights[m * pitch + at - first]), x);
        }
    }
    EACH for (int m = 0; m < M; ++m)
        EACH for (int v = 0; v < V; ++v) sums[m][v] = sum[m][v];
}

// Weighted sums of `wide` vectors of the values for M queries; the last vector has `last` numbers.
template <class T, int M>
void gather(const T* values, int64_t size, int wide, int64_t last, const float* weights, int64_t pitch, int64_t first,
            int64_t stop, F16 (*sums)[WIDE], const Following& following) {
    constexpr int V = M == 1 ? 4 : M == 2 ? 2 : 1;
    const int whole = last < LANES ? wide - 1 : wide;
    int v = 0;
    for (; v + V <= whole; v += V)
        gather_some<T, M, V>(values + v * LANES, size, LANES, weights, pitch, first, stop, (F16(*)[WIDE])(sums[0] + v),
                             v ? Following{} : following);
    for (; v < wide; ++v)
        gather_some<T, M, 1>(values + v * LANES, size, v < whole ? LANES : last, weights, pitch, first, stop,
                             (F16(*)[WIDE])(sums[0] + v), v ? Following{} : following);
}

#else

// Weighted sums of `wide` vectors of the values for M queries; the last vector has `last` numbers.
template <class T, int M>
void gather(const T* values, int64_t size, int wide, int64_t last, const float* weights, int64_t pitch, int64_t first,
            int64_t stop, F16 (*sums)[WIDE], const Following&) {
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < WIDE; ++v) sums[m][v] = F16{};
    for (int64_t at = first; at < stop; ++at) {
        const T* value = values + at * size;
        for (int v = 0; v < wide; ++v) {
            const T* part = value + v * LANES;
            F16 x = v + 1 == wide && last < LANES ? widen_part(part, last) : widen(part);
            for (int m = 0; m < M; ++m)
                sums[m][v] = fused(sums[m][v], all(weights[m * pitch + at - first]), x);
        }
    }
}

#endif

template <class D>
void attend_queries(const Attention& a, int64_t row, int64_t key_head, const Query* query, int M,
                    const Following& following) {
    using T = typename D::T;
    const T* keys = (const T*)a.keys + row * a.key_row + key_head * a.key_head;
    const T* values = (const T*)a.values + row * a.value_row + key_head * a.value_head;
    int64_t first = query[0].first, stop = query[0].stop;
    for (int m = 1; m < M; ++m) {
        first = std::min(first, query[m].first);
        stop = std::max(stop, query[m].stop);
    }
    first = first / LANES * LANES;  // a position always has the same lane: sums keep their order
    const int64_t span = stop - first, pitch = (span + LANES - 1) / LANES * LANES;
    static thread_local std::vector<float> scores;
    static thread_local std::vector<typename D::X> packed;
    if (int64_t(scores.size()) < TOGETHER * pitch) scores.resize(TOGETHER * pitch * 2);
    if (int64_t(packed.size()) < TOGETHER * a.key_size) packed.resize(TOGETHER * a.key_size);
    for (int m = 0; m < M; ++m) {
        const T* from =
            (const T*)a.queries + row * a.query_row + query[m].head * a.query_head + query[m].token * a.query_token;
        if constexpr (std::is_same_v<typename D::X, T>)
            std::memcpy(packed.data() + m * a.key_size, from, a.key_size * sizeof(T));
        else
            as_input<D>(from, a.key_size, packed.data() + m * a.key_size);
    }
    score<D>(keys, packed.data(), a.key_size, M, first, stop, scores.data(), pitch, (const char*)values,
             a.value_size * sizeof(T));
    float total[TOGETHER];
    for (int m = 0; m < M; ++m)
        total[m] = weigh(scores.data() + m * pitch, span, query[m].first - first, query[m].stop - first, a.scale,
                         a.softcap);

    for (int64_t start = 0; start < a.value_size; start += WIDE * LANES) {
        const int64_t left = std::min<int64_t>(a.value_size - start, WIDE * LANES);
        const int wide = int((left + LANES - 1) / LANES);
        const int64_t last = left - (wide - 1) * LANES;
        F16 sums[TOGETHER][WIDE];
        auto gathered = M == 1 ? gather<T, 1> : M == 2 ? gather<T, 2> : M == 3 ? gather<T, 3> : gather<T, 4>;
        gathered(values + start, a.value_size, wide, last, scores.data(), pitch, first, stop, sums,
                 start ? Following{} : following);
        for (int m = 0; m < M; ++m) {
            T* out = (T*)a.out + ((row * a.tokens + query[m].token) * a.heads + query[m].head) * a.value_size + start;
            for (int v = 0; v < wide; ++v)
                round_some(out + v * LANES, sums[m][v] / total[m], v + 1 == wide ? last : LANES);
        }
    }
}

// Every query of the pass, by the threads of the team that calls this; there is a barrier at the end.
template <class D>
void attend_in_team(const Attention& a) {
    using T = typename D::T;
    const int64_t group = a.heads / a.kv_heads, queries = group * a.tokens;
    const int64_t parts = (queries + TOGETHER - 1) / TOGETHER, tasks = a.rows * a.kv_heads * parts;
    const int64_t share = std::max<int64_t>(1, std::min<int64_t>(a.kv_heads * parts, tasks / 16));
#pragma omp for schedule(dynamic, share)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t part = task % parts, key_head = task / parts % a.kv_heads, row = task / parts / a.kv_heads;
        Query query[TOGETHER];
        const int M = int(std::min<int64_t>(TOGETHER, queries - part * TOGETHER));
        for (int m = 0; m < M; ++m) {
            // Neighbors in `query` are heads of one group first, then tokens: they see nearly the same keys.
            const int64_t i = part * TOGETHER + m, token = i / group;
            query[m] = {token, key_head * group + i % group, a.key_start[row * a.tokens + token],
                        a.key_end[row * a.tokens + token]};
        }
        Following following;
#if defined(EDDECODE_NARROW)
        if (part == parts - 1 && task + 1 < tasks) {
            const int64_t r = (task + 1) / parts / a.kv_heads, head = (task + 1) / parts % a.kv_heads;
            const T* keys = (const T*)a.keys + r * a.key_row + head * a.key_head + a.key_start[r * a.tokens] * a.key_size;
            following = {(const char*)keys, a.key_size * int64_t(sizeof(T))};
        }
#else
        if (part == parts - 1 && key_head + 1 < a.kv_heads)  // the next head's keys are elsewhere in memory
            fetch((const T*)a.keys + row * a.key_row + (key_head + 1) * a.key_head + query[0].first * a.key_size,
                  std::min<int64_t>(query[M - 1].stop - query[0].first, FETCHED) * a.key_size * sizeof(T));
#endif
        attend_queries<D>(a, row, key_head, query, M, following);
    }
}

}  // namespace eddecode
