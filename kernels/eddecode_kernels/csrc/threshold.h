// Top-k and top-p are the same problem: find the smallest value such that the weight of everything strictly above it is
// less than a target. With weight 1 and target k that is the k-th largest value; with probabilities and target p it is
// the edge of the nucleus. Equal values are kept or dropped together. The result is exact on any distribution: a
// histogram finds the bin of the edge, only that bin is refined, and what is left at the end is sorted.
#pragma once

#include <algorithm>
#include <cstdint>

namespace eddecode {

struct Weighted {
    float value;
    double weight;
};

// `items` (at least one) is overwritten. `above` is the weight of everything larger than all of them. Returns the
// smallest value among the items that has less than `target` strictly above it (the largest value if none has).
inline float threshold(Weighted* items, int64_t count, double above, double target) {
    constexpr int BINS = 512;
    while (count > 128) {
        float lowest = items[0].value, highest = items[0].value;
        for (int64_t i = 0; i < count; ++i) {
            lowest = std::min(lowest, items[i].value);
            highest = std::max(highest, items[i].value);
        }
        if (lowest == highest) return lowest;
        // Double precision throughout: the difference of two floats neither overflows nor vanishes. Each step below
        // is monotone under rounding, so a larger value never lands in a later bin.
        const double scale = BINS / (double(highest) - double(lowest));
        const auto bin_of = [&](float value) {
            return std::min(int((double(highest) - double(value)) * scale), BINS - 1);
        };
        double weights[BINS] = {};
        for (int64_t i = 0; i < count; ++i) weights[bin_of(items[i].value)] += items[i].weight;
        int edge = 0;
        for (; edge < BINS - 1 && above + weights[edge] < target; ++edge) above += weights[edge];
        // The bin of the edge has items: their weight crosses the target, or it is the last bin, with the lowest value.
        int64_t kept = 0;
        for (int64_t i = 0; i < count; ++i)
            if (bin_of(items[i].value) == edge) items[kept++] = items[i];
        count = kept;
    }
    std::sort(items, items + count, [](const Weighted& a, const Weighted& b) { return a.value > b.value; });
    float edge = items[0].value;
    for (int64_t i = 0; i < count && above < target;) {
        edge = items[i].value;
        for (; i < count && items[i].value == edge; ++i) above += items[i].weight;
    }
    return edge;
}

}  // namespace eddecode
