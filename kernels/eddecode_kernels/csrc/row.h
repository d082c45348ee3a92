// The arguments of one call, and how one of its rows is read: its contrast block by block, with its masks, and the
// partial softmax sums of a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lanes.h"

namespace eddecode {

constexpr int64_t BLOCK = 1024;

// As in types.py.
enum Status : int32_t {
    FINE = 0,
    NO_CANDIDATES = 1,
    NON_FINITE_CONTRAST = 2,
    OUT_OF_MEMORY = 3,
    NON_FINITE_LOGITS = 4,  // + the index of the term
};

}  // namespace eddecode

// One call. Arrays over rows have `rows` entries; weights, logprobs are (terms, rows) and (terms + 1, rows).
struct EddecodeCall {
    int64_t terms, rows, width, threads;
    const float* const* logits;  // terms pointers, row r of term i at logits[i] + r * strides[i]
    const int64_t* widths;
    const int64_t* strides;
    const float* weights;
    const float* temperature;
    const int64_t* top_k;
    const float* top_p;
    const float* min_p;
    const float* log_plausibility;  // log τ, −inf = off; null = off for all rows
    const double* uniforms;
    const uint8_t* vocabulary;           // null = all
    const int64_t* forbidden_starts;     // rows + 1 offsets into forbidden_ids; null = none
    const int64_t* forbidden_ids;
    int64_t* tokens;
    float* logprobs;
    int32_t* status;
};

namespace eddecode {

// Σ exp((x − top)·scale) over one block, beside its largest value.
struct Part {
    float top;
    double sum;
};

inline int64_t blocks_of(int64_t width) { return (width + BLOCK - 1) / BLOCK; }

inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// A block of `count` floats; if it ends in the middle of a vector, a copy padded with −inf.
inline const float* whole_lanes(const float* at, int64_t count, float* room) {
    if (count % LANES == 0) return at;
    std::memcpy(room, at, count * sizeof(float));
    std::fill(room + count, room + padded(count), -INF);
    return room;
}

inline float largest_of(const float* x, int64_t count) {
    F16 top = all(-INF);
    for (int64_t j = 0; j < count; j += LANES) {
        F16 v = load(x + j);
        top = pick(v > top, v, top);
    }
    return largest(top);
}

// `count` is a multiple of LANES; the exponentials are stored in `keep` unless it is null. A NaN makes the sum NaN.
inline Part part_of(const float* x, int64_t count, float top, float scale, float* keep) {
    if (!std::isfinite(top)) {
        double sum = top == INF ? 1.0 : 0.0;
        for (int64_t j = 0; j < count; ++j)
            if (x[j] != x[j]) sum = NAN;
        if (keep) std::fill(keep, keep + count, 0.0f);
        return {top, sum};
    }
    Sum sum;
    for (int64_t j = 0; j < count; j += LANES) {
        F16 e = exp_nonpositive((load(x + j) - top) * scale);
        if (keep) store(keep + j, e);
        sum.add(e);
    }
    return {top, sum.total()};
}

struct Row {
    const EddecodeCall& call;
    int64_t row;
    float temperature, scale;  // scale: 1/T
    float plausible;           // ids with a smaller base logit are implausible
    bool filtered;

    Row(const EddecodeCall& c, int64_t r) : call(c), row(r), temperature(c.temperature[r]), plausible(-INF) {
        scale = temperature > 0 ? std::min(1.0f / temperature, std::numeric_limits<float>::max()) : 0.0f;
        const bool top_k = c.top_k[r] > 0 && c.top_k[r] < c.width;
        filtered = temperature > 0 && (top_k || c.top_p[r] < 1.0f || c.min_p[r] > 0.0f);
    }

    float weight(int64_t term) const { return call.weights[term * call.rows + row]; }
    const float* logits(int64_t term) const { return call.logits[term] + row * call.strides[term]; }

    // Contrast of block b into `out` (whole lanes). `mask_only` gives the base logits instead, under the same mask.
    void contrast(int64_t b, float* out, bool mask_only = false) const {
        const int64_t begin = b * BLOCK, count = std::min(BLOCK, call.width - begin);
        float room[BLOCK];
        std::fill(out, out + padded(count), 0.0f);
        for (int64_t i = 0; i < call.terms; ++i) {
            const float w = weight(i);
            if (w == 0.0f) continue;
            const float* z = whole_lanes(logits(i) + begin, count, room);
            for (int64_t j = 0; j < count; j += LANES) {
                F16 v = load(z + j);
                store(out + j, pick(v == -INF, v, load(out + j) + v * w));
            }
        }
        const float* base = whole_lanes(logits(0) + begin, count, room);
        if (mask_only || plausible > -INF)
            for (int64_t j = 0; j < count; j += LANES) {
                F16 v = load(base + j), c = load(out + j);
                if (mask_only) c = pick(c == -INF, c, v);
                store(out + j, pick(v < plausible, all(-INF), c));
            }
        if (call.vocabulary) mask_outside(begin, count, out);
        if (call.forbidden_starts)
            for (int64_t f = call.forbidden_starts[row]; f < call.forbidden_starts[row + 1]; ++f) {
                const int64_t j = call.forbidden_ids[f] - begin;
                if (j >= 0 && j < count) out[j] = -INF;
            }
        std::fill(out + count, out + padded(count), -INF);
    }

    void mask_outside(int64_t begin, int64_t count, float* out) const {
        uint8_t room[BLOCK];
        const uint8_t* allowed = call.vocabulary + begin;
        if (count % LANES) allowed = static_cast<uint8_t*>(std::memcpy(room, allowed, count));
        for (int64_t j = 0; j < count; j += LANES)
            store(out + j, pick(load_flags(allowed + j), load(out + j), all(-INF)));
    }
};

}  // namespace eddecode
