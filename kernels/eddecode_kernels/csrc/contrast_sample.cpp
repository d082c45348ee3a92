// Contrast and sample on the CPU. A row is read once, in blocks that stay in the first-level cache: each block yields
// the partial softmax sums of every model and of the contrast; sampling needs those sums and one of the blocks again.
// Only a row with top-k, top-p or min-p keeps its contrast and its exponentials, in buffers that are reused. All
// filters are a threshold on the contrast, so the row is never sorted.
//
// Work is divided by rows, or by the blocks of one row when there are fewer rows than threads. Blocks are the same
// either way and their sums are added in order, so that a row's result depends neither on the number of threads nor on
// the other rows.

#include <algorithm>
#include <functional>
#include <new>
#include <vector>

#include "row.h"
#include "threshold.h"

namespace eddecode {

constexpr int64_t PARALLEL_FROM = 1 << 18;  // logits per term in a call, below which it stays on one thread
constexpr int CUTS = 8;                     // thresholds that one pass over the row tests at once

// Buffers that a thread keeps from row to row; they only grow.
struct Workspace {
    std::vector<std::vector<Part>> terms;
    std::vector<Part> plain, tempered;  // of the contrast, at temperature 1 and at the row's own
    std::vector<float> contrast, exps, tops, lows;
    std::vector<double> factors, masses, normalizers, partial;
    std::vector<Weighted> items;

    void fit(const EddecodeCall& call, bool filtered) {
        terms.resize(std::max<size_t>(terms.size(), call.terms));
        for (int64_t i = 0; i < call.terms; ++i) grow(terms[i], blocks_of(call.widths[i]));
        const int64_t blocks = blocks_of(call.width);
        for (auto* parts : {&plain, &tempered}) grow(*parts, blocks);
        for (auto* floats : {&tops, &lows}) grow(*floats, blocks);
        for (auto* doubles : {&factors, &masses}) grow(*doubles, blocks);
        grow(normalizers, call.terms);
        if (!filtered) return;
        for (auto* floats : {&contrast, &exps}) grow(*floats, blocks * BLOCK);
        grow(partial, blocks * CUTS);
        grow(items, call.width + 1);
    }

    template <class T>
    static void grow(std::vector<T>& buffer, int64_t size) {
        if (int64_t(buffer.size()) < size) buffer.resize(size);
    }
};

// The largest value of `count` parts, and the sum over all of them relative to it; factors[b] scales the sum of b.
struct Total {
    float top;
    double sum;

    Total(const std::vector<Part>& parts, int64_t count, double scale, double* factors = nullptr) : top(-INF), sum(0) {
        for (int64_t b = 0; b < count; ++b) top = std::max(top, parts[b].top);
        for (int64_t b = 0; b < count; ++b) {
            double factor = parts[b].top == top ? 1.0 : std::exp((double(parts[b].top) - top) * scale);
            sum += parts[b].sum * factor;
            if (factors) factors[b] = factor;
        }
    }

    double logsumexp() const { return top + std::log(sum); }
};

class RowSampler {
  public:
    RowSampler(const EddecodeCall& call, int64_t row, Workspace& space, int threads)
        : call_(call), row_(call, row), w_(space), threads_(threads), blocks_(blocks_of(call.width)) {}

    void run() {
        w_.fit(call_, row_.filtered);
        if (call_.log_plausibility && call_.log_plausibility[row_.row] > -INF) find_plausible();
        int64_t most = blocks_;
        for (int64_t i = 0; i < call_.terms; ++i) most = std::max(most, blocks_of(call_.widths[i]));
        each_block(most, [this](int64_t b) { scan(b); });
        finish();
    }

  private:
    const EddecodeCall& call_;
    Row row_;
    Workspace& w_;
    int threads_;
    int64_t blocks_;

    template <class Work>
    void each_block(int64_t blocks, const Work& work) {
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1 && blocks >= 8)
        for (int64_t b = 0; b < blocks; ++b) work(b);
    }

    int64_t count(int64_t b) const { return std::min(BLOCK, call_.width - b * BLOCK); }

    void find_plausible() {
        each_block(blocks_, [this](int64_t b) {
            float base[BLOCK];
            row_.contrast(b, base, true);
            w_.tops[b] = largest_of(base, padded(count(b)));
        });
        row_.plausible = *std::max_element(w_.tops.begin(), w_.tops.begin() + blocks_) +
                         call_.log_plausibility[row_.row];
    }

    void scan(int64_t b) {
        float room[BLOCK];
        for (int64_t i = 0; i < call_.terms; ++i) {
            const int64_t begin = b * BLOCK, n = std::min(BLOCK, call_.widths[i] - begin);
            if (n <= 0) continue;
            const float* z = whole_lanes(row_.logits(i) + begin, n, room);
            w_.terms[i][b] = part_of(z, padded(n), largest_of(z, padded(n)), 1.0f, nullptr);
        }
        if (b >= blocks_) return;
        float* c = row_.filtered ? &w_.contrast[b * BLOCK] : room;
        float* e = row_.filtered ? &w_.exps[b * BLOCK] : nullptr;
        row_.contrast(b, c);
        const int64_t n = padded(count(b));
        const float top = largest_of(c, n);
        const bool shared = row_.temperature == 1.0f;
        w_.plain[b] = part_of(c, n, top, 1.0f, shared ? e : nullptr);
        if (shared) w_.tempered[b] = w_.plain[b];
        else if (row_.temperature > 0) w_.tempered[b] = part_of(c, n, top, row_.scale, e);
        if (row_.filtered) w_.lows[b] = smallest_finite(c, n);
    }

    static float smallest_finite(const float* c, int64_t n) {
        F16 low = all(INF);
        for (int64_t j = 0; j < n; j += LANES) {
            F16 v = load(c + j);
            v = pick(v == -INF, all(INF), v);
            low = pick(v < low, v, low);
        }
        return smallest(low);
    }

    void finish() {
        int32_t& status = call_.status[row_.row];
        const Total plain(w_.plain, blocks_, 1.0);
        status = plain.top == -INF ? NO_CANDIDATES : FINE;
        if (plain.top == INF || std::isnan(plain.sum)) status = NON_FINITE_CONTRAST;
        for (int64_t i = call_.terms - 1; i >= 0; --i) {
            const Total own(w_.terms[i], blocks_of(call_.widths[i]), 1.0);
            if (std::isnan(own.sum) || (own.top == INF && row_.weight(i) != 0.0f))
                status = NON_FINITE_LOGITS + int32_t(i);
            w_.normalizers[i] = own.logsumexp();
        }
        if (status != FINE) return;
        float chosen = 0.0f;
        const int64_t token = row_.temperature > 0 ? sample(chosen) : greedy(plain.top, chosen);
        call_.tokens[row_.row] = token;
        for (int64_t i = 0; i < call_.terms; ++i) set_logprob(i, row_.logits(i)[token], w_.normalizers[i]);
        set_logprob(call_.terms, chosen, plain.logsumexp());
    }

    void set_logprob(int64_t term, float z, double normalizer) {
        call_.logprobs[term * call_.rows + row_.row] = z == -INF ? -INF : float(z - normalizer);
    }

    int64_t greedy(float top, float& chosen) {
        int64_t b = 0, j = 0;
        while (w_.plain[b].top != top) ++b;
        float c[BLOCK];
        row_.contrast(b, c);
        while (c[j] != top) ++j;
        chosen = top;
        return b * BLOCK + j;
    }

    // The smallest id whose cumulative mass exceeds u times the total.
    int64_t sample(float& chosen) {
        const Total all_mass(w_.tempered, blocks_, 1.0 / row_.temperature, w_.factors.data());
        const float least = row_.filtered ? filters(all_mass) : -INF;
        double total = 0;
        for (int64_t b = 0; b < blocks_; ++b) {
            w_.masses[b] = row_.filtered ? mass_from(b, least) : w_.tempered[b].sum * w_.factors[b];
            total += w_.masses[b];
        }
        const double target = call_.uniforms[row_.row] * total;
        double before = 0;
        int64_t block = -1;  // the last one with any mass, if by rounding no block exceeds the target
        for (int64_t b = 0; b < blocks_; ++b) {
            if (w_.masses[b] <= 0) continue;
            if (block >= 0) before += w_.masses[block];
            block = b;
            if (before + w_.masses[b] > target) break;
        }
        float c_room[BLOCK], e_room[BLOCK];
        const float *c = c_room, *e = e_room;
        if (row_.filtered) {
            c = &w_.contrast[block * BLOCK];
            e = &w_.exps[block * BLOCK];
        } else {
            row_.contrast(block, c_room);
            part_of(c_room, padded(count(block)), w_.tempered[block].top, row_.scale, e_room);
        }
        int64_t last = 0;
        for (int64_t j = 0; j < count(block); ++j) {
            if (!(e[j] > 0.0f) || c[j] < least) continue;
            before += e[j] * w_.factors[block];
            last = j;
            if (before > target) break;
        }
        chosen = c[last];
        return block * BLOCK + last;
    }

    // The smallest contrast that is kept by top-k, by top-p on what top-k left, and by min-p.
    float filters(const Total& all_mass) {
        const EddecodeCall& call = call_;
        const int64_t row = row_.row, k = call.top_k[row];
        const double p = call.top_p[row], temperature = row_.temperature;
        const bool top_k = k > 0 && k < call.width;
        const float lowest = *std::min_element(w_.lows.begin(), w_.lows.begin() + blocks_);
        float least = top_k ? kth_largest(k, all_mass.top, below(lowest)) : -INF;
        if (p < 1.0) {
            double total = all_mass.sum;
            float low = below(lowest);
            if (top_k && least > -INF) {
                total = 0;
                for (int64_t b = 0; b < blocks_; ++b) total += mass_from(b, least);
                low = below(least);
            } else {
                // V tokens that are each below (1 − p)/V of the largest have less than 1 − p of the mass together,
                // so the edge of the nucleus lies above that. The extra nat is for rounding.
                const double reach = std::log(double(call.width)) - std::log1p(-p) + 1.0;
                low = std::max(low, float(std::max(all_mass.top - temperature * reach, -1e38)));
            }
            const bool many = (top_k && least > -INF ? k : call.width) > 4096;
            least = std::max(least, edge<false>(low, all_mass.top, p * total, many));
        }
        if (call.min_p[row] > 0.0f) least = std::max(least, min_p_floor(all_mass.top, call.min_p[row], temperature));
        return least;
    }

    static float below(float x) { return std::nextafter(x, -INF); }

    // The smallest float c for which c/T reaches max/T + log(min_p) in double precision.
    static float min_p_floor(float top, double min_p, double temperature) {
        const double floor = top / temperature + std::log(min_p);
        float least = float(floor * temperature);
        while (least / temperature >= floor) least = below(least);
        while (least / temperature < floor) least = std::nextafter(least, INF);
        return least;
    }

    float kth_largest(int64_t k, float top, float low) {
        auto tops = w_.tops.begin();
        for (int64_t b = 0; b < blocks_; ++b) tops[b] = w_.tempered[b].top;
        const bool few = k <= blocks_;
        if (few) {  // k blocks have a value that large, so the k-th largest value is no smaller
            std::nth_element(tops, tops + (k - 1), tops + blocks_, std::greater<float>());
            low = std::max(low, below(tops[k - 1]));
        }
        return edge<true>(low, top, double(k), !few);
    }

    // The smallest contrast above `low` with a weight of less than `target` strictly above it. With UNIT every token
    // has the weight 1, else its mass. `many`: narrow the interval by passes over the row before its tokens are
    // collected.
    template <bool UNIT>
    float edge(float low, float high, double target, bool many) {
        double above = 0;
        for (int pass = 0; pass < 2 && many && low < high; ++pass) {
            float cuts[CUTS];
            double weights[CUTS] = {};
            for (int i = 0; i < CUTS; ++i) cuts[i] = float(low + (double(high) - low) * (i + 1) / (CUTS + 1));
            each_block(blocks_, [&](int64_t b) { weigh<UNIT>(b, cuts, &w_.partial[b * CUTS]); });
            for (int64_t b = 0; b < blocks_; ++b)
                for (int i = 0; i < CUTS; ++i) weights[i] += w_.partial[b * CUTS + i];
            int first = 0;
            while (first < CUTS && weights[first] >= target) ++first;
            if (first > 0) low = cuts[first - 1];
            if (first < CUTS) {
                high = cuts[first];
                above = weights[first];
            }
        }
        const int64_t found = gather<UNIT>(low, high);
        return found ? threshold(w_.items.data(), found, above, target) : high;
    }

    // Weight above each of the cuts, which ascend, in one block.
    template <bool UNIT>
    void weigh(int64_t b, const float* cuts, double* weights) const {
        std::fill(weights, weights + CUTS, 0.0);
        if (w_.tempered[b].top <= cuts[0]) return;
        Sum sums[CUTS];
        const float *c = &w_.contrast[b * BLOCK], *e = &w_.exps[b * BLOCK];
        const int64_t n = padded(count(b));
        for (int64_t start = 0; start < n; start += 8 * LANES) {  // eight floats per lane, then on in double
            F16 some[CUTS] = {};
            for (int64_t j = start; j < std::min(n, start + 8 * LANES); j += LANES) {
                const F16 value = load(c + j), mass = UNIT ? all(1.0f) : load(e + j);
                for (int i = 0; i < CUTS; ++i) some[i] += pick(value > cuts[i], mass, F16{});
            }
            for (int i = 0; i < CUTS; ++i) sums[i].add(some[i]);
        }
        for (int i = 0; i < CUTS; ++i) weights[i] = sums[i].total() * (UNIT ? 1.0 : w_.factors[b]);
    }

    // Tokens with low < contrast <= high into `items`; returns how many.
    template <bool UNIT>
    int64_t gather(float low, float high) {
        int64_t found = 0;
        for (int64_t b = 0; b < blocks_; ++b) {
            if (w_.tempered[b].top <= low) continue;
            const float *c = &w_.contrast[b * BLOCK], *e = &w_.exps[b * BLOCK];
            for (int64_t j = 0; j < count(b); ++j) {
                w_.items[found] = {c[j], UNIT ? 1.0 : e[j] * w_.factors[b]};
                found += (c[j] > low) & (c[j] <= high);
            }
        }
        return found;
    }

    // Mass of the tokens of block b whose contrast is at least `least`.
    double mass_from(int64_t b, float least) const {
        if (w_.tempered[b].top < least) return 0.0;
        Sum sum;
        const float *c = &w_.contrast[b * BLOCK], *e = &w_.exps[b * BLOCK];
        for (int64_t j = 0; j < padded(count(b)); j += LANES) sum.add(pick(load(c + j) >= least, load(e + j), F16{}));
        return sum.total() * w_.factors[b];
    }
};

void sample_row(const EddecodeCall& call, int64_t row, int threads) {
    static thread_local Workspace space;
    try {
        RowSampler(call, row, space, threads).run();
    } catch (const std::bad_alloc&) {
        call.status[row] = OUT_OF_MEMORY;
    }
}

}  // namespace eddecode

extern "C" void eddecode_contrast_and_sample(const EddecodeCall* call) {
    // One thread or all of them: OpenMP rebuilds its pool when a team's size changes. Below a fraction of a millisecond
    // of work, waiting for a second thread (on a busy machine: for its time slice) costs more than it saves.
    const bool worth = call->rows * call->width >= eddecode::PARALLEL_FROM;
    const int threads = worth ? int(std::max<int64_t>(call->threads, 1)) : 1;
    if (call->rows < threads) {
        for (int64_t row = 0; row < call->rows; ++row) eddecode::sample_row(*call, row, threads);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < call->rows; ++row) eddecode::sample_row(*call, row, 1);
}
