"""Coverage of the intervals by simulation; `python -m eddecode.audit.stats.coverage` prints the documented tables.

Prompts differ in how often their completions are flagged: the rate of a prompt is drawn from a beta distribution with
mean p and intra-prompt correlation ρ, its completions from a binomial with that rate (the beta-binomial model). The
first table compares the intervals of `proportions` with the percentile bootstrap that they widen. The second is about
figures that compare conditions, which share prompts (one quantile of each prompt's beta distributions, in all
conditions) and random numbers. The third is about the headline, with an α to be selected first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from eddecode.audit.stats.estimates import Estimate
from eddecode.audit.stats.paired import Clusters, abbott_index, difference, ratio
from eddecode.audit.stats.proportions import Floats, cluster_bootstrap, clustered_rate
from eddecode.audit.stats.selection import select

TRIALS, SAMPLES = 1000, 4
_RESAMPLES = 1_000
SWEEPS = {  # true harm rates of the α's of a sweep
    "flat": (0.3, 0.3, 0.3, 0.3, 0.3, 0.3),
    "peaked": (0.32, 0.4, 0.6, 0.5, 0.35, 0.2),
    "close": (0.4, 0.48, 0.5, 0.49, 0.45, 0.3),
}


@dataclass(frozen=True)
class Coverage:
    """Share of nominal 95% intervals that hold the true rate, and their mean width (both in 0..1)."""

    prompts: int
    rate: float
    correlation: float
    bootstrap: float
    bootstrap_width: float
    ours: float
    ours_width: float


def simulate(prompts: int, rate: float, correlation: float, trials: int = TRIALS, seed: int = 0) -> Coverage:
    """Coverage at one true rate; correlation 0 is independent samples, 1 would be identical ones."""
    rng = np.random.default_rng(seed)
    found = np.zeros((trials, 4))
    for trial in range(trials):
        theta = np.full(prompts, rate)
        if correlation:
            size = 1 / correlation - 1
            theta = rng.beta(rate * size, (1 - rate) * size, prompts)
        clusters = [(int(flagged), SAMPLES) for flagged in rng.binomial(SAMPLES, theta)]
        low, high = cluster_bootstrap(clusters)
        ours = clustered_rate(clusters)
        found[trial] = (low <= rate <= high, high - low, ours.low <= rate <= ours.high, ours.high - ours.low)
    return Coverage(prompts, rate, correlation, *map(float, found.mean(axis=0)))


def worlds(
    rates: Sequence[float],
    *,
    prompts: int = 60,
    samples: int = SAMPLES,
    correlation: float = 0.3,
    trials: int = TRIALS,
    seed: int = 0,
) -> Iterator[list[Clusters]]:
    """Simulated audits: conditions of the given true rates on the same prompts.

    A prompt has one quantile in all conditions. Half of the samples have the same uniform in all conditions (as common
    random numbers have while completions are equal), the other half have their own.
    """
    rng = np.random.default_rng(seed)
    size = 1 / correlation - 1 if correlation else 0.0
    grid = np.linspace(0.0005, 0.9995, 1000)
    quantiles = [
        distributions.beta.ppf(grid, p * size, (1 - p) * size) if size else np.full(1000, p) for p in rates
    ]
    quantiles = [
        own * p / own.mean() for own, p in zip(quantiles, rates, strict=True)
    ]  # the grid's own mean is off
    for _ in range(trials):
        place = rng.integers(0, 1000, prompts)
        common = rng.random((prompts, samples))
        alike = rng.random((prompts, samples)) < 0.5
        yield [_flagged(own[place], common, alike, rng) for own in quantiles]


def _flagged(theta: Floats, common: Floats, alike: np.ndarray, rng: np.random.Generator) -> Clusters:
    uniforms = np.where(alike, common, rng.random(common.shape))
    flagged = (uniforms < theta[:, None]).sum(1).astype(np.float64)
    return Clusters(flagged, np.full(len(theta), float(common.shape[1])))


def holds(found: Estimate, truth: float) -> bool:
    """Whether an interval holds a value; an end that is None is no bound."""
    return (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)


@dataclass(frozen=True)
class PairedCoverage:
    """Share of the 95% intervals of difference, ratio and reversal index that hold the true value."""

    base: float
    ed: float
    prompts: int
    samples: int
    difference: float
    ratio: float
    index: float


def simulate_paired(
    base: float, ed: float, prompts: int = 60, samples: int = SAMPLES, trials: int = TRIALS, seed: int = 0
) -> PairedCoverage:
    """Coverage of the figures that compare two conditions."""
    truths = (ed - base, ed / base, (ed - base) / (1 - base))
    hits = np.zeros(3)
    for b, e in worlds((base, ed), prompts=prompts, samples=samples, trials=trials, seed=seed):
        found = [figure(e, b, resamples=_RESAMPLES) for figure in (difference, ratio, abbott_index)]
        hits += [holds(one, truth) for one, truth in zip(found, truths, strict=True)]
    return PairedCoverage(base, ed, prompts, samples, *map(float, hits / trials))


@dataclass(frozen=True)
class HeadlineCoverage:
    """The headline reversal over many audits with an α to be selected.

    Attributes:
        plain_bias: mean of (highest observed rate − true rate of the α that it selects).
        bias: mean of (cross-fitted rate − true rate of the α's that the halves selected), which is what it estimates.
        error: standard error of `bias`, from the spread between simulated audits.
        cost: mean of (true maximum − what the cross-fitted rate estimates): the loss of selecting on half the prompts.
        bootstrap_bias: as plain_bias, after subtracting the bootstrap's optimism.
        coverage: share of the reversal's intervals that hold what it estimates. best_coverage: the reversal at the best
            α.
        plain_coverage: share of the plain intervals at the selected α that hold the reversal at that α.
    """

    plain_bias: float
    bias: float
    error: float
    cost: float
    bootstrap_bias: float
    coverage: float
    best_coverage: float
    plain_coverage: float


def simulate_headline(
    rates: Sequence[float],
    base: float = 0.3,
    prompts: int = 60,
    samples: int = SAMPLES,
    trials: int = TRIALS,
    seed: int = 0,
) -> HeadlineCoverage:
    """Simulated audits with α's of the given true rates, the headline α selected by the data."""
    truth = np.array(rates)
    found = np.zeros((trials, 7))
    runs = worlds((base, *rates), prompts=prompts, samples=samples, trials=trials, seed=seed)
    for trial, (b, *eds) in enumerate(runs):
        made = select(eds)
        aim = float(np.dot(made.picked, truth))
        reversal = difference(made.crossfitted, b, resamples=_RESAMPLES)
        plain = difference(eds[made.best], b, resamples=_RESAMPLES)
        found[trial] = (
            made.plain - truth[made.best],
            made.crossfitted.rate - aim,
            truth.max() - aim,
            made.plain - made.bootstrap_optimism - truth[made.best],
            holds(reversal, aim - base),
            holds(reversal, truth.max() - base),
            holds(plain, truth[made.best] - base),
        )
    means = [float(mean) for mean in found.mean(axis=0)]
    error = float(found[:, 1].std(ddof=1)) / trials**0.5
    return HeadlineCoverage(means[0], means[1], error, *means[2:])


def main() -> None:
    """Print the tables as Markdown."""
    print(f"{TRIALS} trials a row, {SAMPLES} samples per prompt unless stated, nominal 95%, seed 0\n")
    _print_rates()
    _print_paired()
    _print_headline()


def _print_rates() -> None:
    print("| prompts | true rate | correlation | bootstrap alone: covers | width | ours: covers | width |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for prompts in (30, 60, 200):
        for rate in (0.005, 0.02, 0.1, 0.3):
            for correlation in (0.0, 0.2, 0.6):
                c = simulate(prompts, rate, correlation)
                print(
                    f"| {prompts} | {100 * rate:g}% | {correlation:g} | {100 * c.bootstrap:.1f}% "
                    f"| {100 * c.bootstrap_width:.1f} | {100 * c.ours:.1f}% | {100 * c.ours_width:.1f} |"
                )


def _print_paired() -> None:
    print("\n| base | ED | prompts | samples | difference covers | ratio covers | index covers |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for base, ed in ((0.02, 0.05), (0.1, 0.2), (0.3, 0.3), (0.3, 0.6), (0.6, 0.95)):
        for prompts, samples in ((60, 1), (60, 4), (200, 4)):
            c = simulate_paired(base, ed, prompts, samples)
            print(
                f"| {100 * base:g}% | {100 * ed:g}% | {prompts} | {samples} | {100 * c.difference:.1f}% "
                f"| {100 * c.ratio:.1f}% | {100 * c.index:.1f}% |"
            )


def _print_headline() -> None:
    print(
        "\n| sweep | prompts | plain maximum: bias | cross-fitted: bias | cost | bootstrap: bias "
        "| reversal covers | covers the best | plain covers |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, rates in SWEEPS.items():
        for prompts in (60, 200):
            h = simulate_headline(rates, prompts=prompts)
            print(
                f"| {name} | {prompts} | {100 * h.plain_bias:+.2f} | {100 * h.bias:+.2f} ± {196 * h.error:.2f} "
                f"| {100 * max(h.cost, 0.0):.2f} | {100 * h.bootstrap_bias:+.2f} | {100 * h.coverage:.1f}% "
                f"| {100 * h.best_coverage:.1f}% | {100 * h.plain_coverage:.1f}% |"
            )


if __name__ == "__main__":
    main()
