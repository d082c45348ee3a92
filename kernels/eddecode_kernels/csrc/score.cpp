// Log-probabilities of given tokens under two models and under every contrast of them: one pass over two rows of logits
// for any number of weights. A block of both rows is loaded into the first-level cache once, and all sums over it are
// taken there: per model its softmax and its part of the divergence from the other, per contrast its softmax.
//
// A contrast costs little more than its exponentials: the largest value is searched in the first block only, and is
// then a reference that later blocks may exceed, as long as floats can represent the exponential of the difference.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

struct EddecodeScore {
    int64_t rows, width, contrasts, threads;
    const float* logits[2];  // row r of model i at logits[i] + r * strides[i]
    int64_t widths[2];       // at least `width`
    int64_t strides[2];
    const int64_t* targets;     // (rows), below `width`
    const float* weights;       // (contrasts, 2)
    const uint8_t* vocabulary;  // (width); null = all
    double* logprobs;           // (2 + contrasts, rows): each model's own, then the contrasts'
    uint8_t* greedy;            // (contrasts, rows): 1 where no id has a larger contrast, nor a lower id an equal one
    double* divergences;        // (2, rows): KL(model 0 ‖ model 1), KL(model 1 ‖ model 0), over the vocabulary
};

namespace eddecode {
namespace {

constexpr int64_t BLOCK = 2048;  // three buffers of it fit the first-level cache

// Σ exp(x − top) and Σ exp(x − top)·y over the blocks so far. `top` only rises where a block is above it, so
// rescaling is rare. NaN or +inf makes the sum NaN.
struct Running {
    float top = -INF;
    double sum = 0.0, moment = 0.0;

    // Raises `top` for a block with this largest value; whether the block has anything to add.
    bool rise(float above, bool nan) {
        if (nan || above == INF) sum = NAN;
        if (nan || above == INF || above == -INF) return false;
        if (above > top) {
            const double scale = top == -INF ? 0.0 : std::exp(double(top) - double(above));
            sum *= scale;
            moment *= scale;
            top = above;
        }
        return true;
    }

    double normalizer() const { return sum == 0.0 ? -double(INF) : double(top) + std::log(sum); }
};

constexpr float CEILING = 80.0f;    // exp(80)·BLOCK is a float
constexpr double TOO_LARGE = 1e33;  // more than the sum of a block below its reference; exp(80) is 5.5e34

inline F16 clamped(F16 x) {  // NaN stays NaN
#if defined(__AVX512F__)
    return (F16)_mm512_min_ps((__m512)all(CEILING), (__m512)x);
#else
    return pick(x > CEILING, all(CEILING), x);
#endif
}

// exp(x) for any x, at most exp(CEILING); see exp_nonpositive. Fused where the machine can: one rounding fewer each.
inline F16 exp_clamped(F16 x) {
    const auto fused = [](F16 a, F16 b, F16 c) { return eddecode::fused(c, a, b); };  // a·b + c
    x = clamped(x);
    F16 shifted = fused(x, all(1.44269504f), all(12582912.0f));
    F16 n = shifted - 12582912.0f;
    F16 r = fused(n, all(-1.42860677e-06f), fused(n, all(-0.693145751953125f), x));
    F16 q = all(0x1.6a23d0p-10f);
    q = fused(q, r, all(0x1.123a20p-7f));
    q = fused(q, r, all(0x1.5558f2p-5f));
    q = fused(q, r, all(0x1.555492p-3f));
    q = fused(q, r, all(0x1.fffffcp-2f));
    F16 mantissa = fused(q, r * r, r) + 1.0f;
    const F16 power = from_bits((bits_of(shifted) << 23) + 0x3f800000);
    return pick(x < -87.0f, F16{}, mantissa * power);
}

struct Range {
    float top, low;
    bool nan;
};

Range range_of(const float* x, int64_t count) {
    F16 top = all(-INF), low = all(INF);
    I16 nan{};
    for (int64_t j = 0; j < count; j += LANES) {
        F16 v = load(x + j);
        top = pick(v > top, v, top);
        low = pick(v < low, v, low);
        nan |= v != v;
    }
    int32_t any = 0;
    const auto each = lanes_of(nan);
    for (int lane = 0; lane < LANES; ++lane) any |= each[lane];
    return {largest(top), smallest(low), any != 0};
}

void add(Running& to, const float* x, int64_t count, const Range& range) {
    if (!to.rise(range.top, range.nan)) return;
    Sum sum;
    for (int64_t j = 0; j < count; j += LANES) sum.add(exp_nonpositive(load(x + j) - to.top));
    to.sum += sum.total();
}

// The same, with the moment of x − y. Ids of no probability under x add nothing; an id that has some under x and none
// under y makes the divergence infinite.
void add(Running& to, const float* x, const float* y, int64_t count, const Range& range, bool plain, bool& infinite) {
    if (!to.rise(range.top, range.nan)) return;
    Sum sum, moment;
    I16 alone{};
    for (int64_t j = 0; j < count; j += LANES) {
        F16 v = load(x + j), w = load(y + j), e = exp_nonpositive(v - to.top), difference = v - w;
        if (!plain) {
            alone |= (v > -INF) & (w == -INF);
            difference = pick((v > -INF) & (w > -INF), difference, F16{});
        }
        sum.add(e);
        moment.add(e * difference);
    }
    const auto each = lanes_of(alone);
    for (int lane = 0; lane < LANES; ++lane) infinite |= each[lane] != 0;
    to.sum += sum.total();
    to.moment += moment.total();
}

struct Scorer {
    const EddecodeScore& call;
    std::vector<Running> contrasts;
    std::vector<float> chosen;  // each contrast's logit of the target, −inf outside of the vocabulary
    std::vector<uint8_t> beaten;  // whether another id comes before the target in the contrast's order
    float copies[2][BLOCK], masked[2][BLOCK], mixed[BLOCK];

    explicit Scorer(const EddecodeScore& c) : call(c), contrasts(c.contrasts), chosen(c.contrasts), beaten(c.contrasts) {}

    // A block of logits, padded with −inf to whole vectors.
    const float* block(int64_t model, int64_t row, int64_t begin, int64_t count) {
        const float* at = call.logits[model] + row * call.strides[model] + begin;
        if (count % LANES == 0) return at;
        std::memcpy(copies[model], at, count * sizeof(float));
        std::fill(copies[model] + count, copies[model] + (count + LANES - 1) / LANES * LANES, -INF);
        return copies[model];
    }

    // A block with −inf at the ids inside of the vocabulary, or at those outside.
    const float* without(bool inside, int64_t model, const float* x, int64_t begin, int64_t count) {
        float* to = masked[model];
        for (int64_t j = 0; j < count; ++j) to[j] = (call.vocabulary[begin + j] != 0) == inside ? -INF : x[j];
        std::fill(to + count, to + (count + LANES - 1) / LANES * LANES, -INF);
        return to;
    }

    void contrast(const float* base, const float* aligned, int64_t count, bool plain, int64_t target) {
        for (int64_t a = 0; a < call.contrasts; ++a) {
            const float v = call.weights[2 * a], w = call.weights[2 * a + 1];
            Running& to = contrasts[a];
            const double sum = plain && to.top > -INF ? above(base, aligned, v, w, to.top, count) : INF;
            if (sum < TOO_LARGE)
                to.sum += sum;
            else
                carefully(to, base, aligned, v, w, count);
            if (!beaten[a]) beaten[a] = beats(base, aligned, v, w, chosen[a], count, target);
        }
    }

    // Whether an id of the block comes before the target: a larger contrast, or an equal one and a lower id. `target` is
    // relative to the block, and its own contrast does not count, which may be rounded otherwise here.
    static bool beats(
        const float* base, const float* aligned, float v, float w, float top, int64_t count, int64_t target) {
        int32_t numbers[LANES];
        for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
        I16 found{}, id;
        std::memcpy(&id, numbers, sizeof id);
        const int32_t at = (int32_t)std::clamp<int64_t>(target, -1, BLOCK);
        I16 left = id + -at;  // below 0 before the target, 0 at it
        for (int64_t j = 0; j < count; j += LANES) {
            F16 x = load(base + j), y = load(aligned + j), c{};
            if (v != 0.0f) c = pick(x == -INF, x, c + x * v);
            if (w != 0.0f) c = pick(y == -INF, y, pick(c == -INF, c, c + y * w));
            found |= ((c > top) & (left != 0)) | ((c == top) & ((left & INT32_MIN) != 0));
            left = left + (int32_t)LANES;
        }
        const auto lanes = lanes_of(found);
        int32_t any = 0;
        for (int lane = 0; lane < LANES; ++lane) any |= lanes[lane];
        return any != 0;
    }

    static float mix(float x, float y, float v, float w) {
        float c = 0.0f;
        if (v != 0.0f) c = x == -INF ? x : c + x * v;
        if (w != 0.0f) c = y == -INF ? y : c == -INF ? c : c + y * w;
        return c;
    }

    // Σ exp(contrast − top) of a block without any −inf.
    static double above(const float* base, const float* aligned, float v, float w, float top, int64_t count) {
        const auto term = [&](int64_t j) { return exp_clamped((load(base + j) * v + load(aligned + j) * w) - top); };
        Sum sum;
        int64_t j = 0;
        for (; j + 4 * LANES <= count; j += 4 * LANES)  // sums of four floats are added up in double precision
            sum.add((term(j) + term(j + LANES)) + (term(j + 2 * LANES) + term(j + 3 * LANES)));
        for (; j < count; j += LANES) sum.add(term(j));
        return sum.total();
    }

    void carefully(Running& to, const float* base, const float* aligned, float v, float w, int64_t count) {
        for (int64_t j = 0; j < count; j += LANES) {
            F16 x = load(base + j), y = load(aligned + j), c{};
            if (v != 0.0f) c = pick(x == -INF, x, c + x * v);
            if (w != 0.0f) c = pick(y == -INF, y, pick(c == -INF, c, c + y * w));
            store(mixed + j, c);
        }
        add(to, mixed, count, range_of(mixed, count));
    }

    void run(int64_t row) {
        Running safe[2], rest[2];  // ids in the vocabulary, and all others
        bool infinite[2] = {};
        std::fill(contrasts.begin(), contrasts.end(), Running{});
        const int64_t target = call.targets[row];
        const bool known = !call.vocabulary || call.vocabulary[target];
        const float x = call.logits[0][row * call.strides[0] + target], y = call.logits[1][row * call.strides[1] + target];
        for (int64_t a = 0; a < call.contrasts; ++a) {
            chosen[a] = known ? mix(x, y, call.weights[2 * a], call.weights[2 * a + 1]) : -INF;
            beaten[a] = chosen[a] == -INF;
        }
        for (int64_t begin = 0; begin < call.width; begin += BLOCK) {
            const int64_t real = std::min(BLOCK, call.width - begin), count = (real + LANES - 1) / LANES * LANES;
            const float* z[2] = {block(0, row, begin, real), block(1, row, begin, real)};
            const bool whole = !call.vocabulary || !std::memchr(call.vocabulary + begin, 0, real);
            for (int i = 0; i < 2 && !whole; ++i) {
                const float* others = without(true, i, z[i], begin, real);
                add(rest[i], others, count, range_of(others, count));
                z[i] = without(false, i, z[i], begin, real);
            }
            const Range ranges[2] = {range_of(z[0], count), range_of(z[1], count)};
            const bool plain = ranges[0].low > -INF && ranges[1].low > -INF;
            for (int i = 0; i < 2; ++i) add(safe[i], z[i], z[1 - i], count, ranges[i], plain, infinite[i]);
            contrast(z[0], z[1], count, plain, target - begin);
        }
        finish(row, safe, rest, infinite);
    }

    void finish(int64_t row, const Running* safe, Running* rest, const bool* infinite) {
        const int64_t target = call.targets[row];
        double normalizer[2];
        for (int64_t i = 0; i < 2; ++i) {
            const float* z = call.logits[i] + row * call.strides[i];
            for (int64_t begin = call.width; begin < call.widths[i]; begin += BLOCK) {
                const int64_t real = std::min(BLOCK, call.widths[i] - begin);
                const float* x = block(i, row, begin, real);
                const int64_t count = (real + LANES - 1) / LANES * LANES;
                add(rest[i], x, count, range_of(x, count));
            }
            normalizer[i] = safe[i].normalizer();
            const double other = rest[i].normalizer(), high = std::max(normalizer[i], other);
            // A model that gives no id any mass is broken, as one with a NaN is.
            const double total = high + std::log(std::exp(normalizer[i] - high) + std::exp(other - high));
            call.logprobs[i * call.rows + row] = total != total ? total : double(z[target]) - total;
        }
        for (int64_t i = 0; i < 2; ++i) {
            const double mean = safe[i].moment / safe[i].sum - normalizer[i] + normalizer[1 - i];
            call.divergences[i * call.rows + row] = infinite[i] ? double(INF) : mean < 0.0 ? 0.0 : mean;
        }
        for (int64_t a = 0; a < call.contrasts; ++a) {
            const double total = contrasts[a].normalizer();
            const bool never = chosen[a] == -INF && total == total;
            call.logprobs[(2 + a) * call.rows + row] = never ? -double(INF) : double(chosen[a]) - total;
            call.greedy[a * call.rows + row] = !beaten[a];
        }
    }
};

}  // namespace
}  // namespace eddecode

extern "C" void eddecode_score(const EddecodeScore* call) {
#pragma omp parallel num_threads(call->threads) if (call->threads > 1 && call->rows > 1)
    {
        eddecode::Scorer scorer(*call);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->rows; ++row) scorer.run(row);
    }
}
