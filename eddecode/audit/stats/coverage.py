"""Do the intervals cover, and how often is a PASS false? `python -m eddecode.audit.stats.coverage [--audits N]`.

Every case is of simulated audits whose truth is known (`simulation`), and goes through the functions that the audit
itself uses. Nominal: 95% intervals, 2.5% false PASS. Figures are given with the Monte-Carlo error of their number of
audits (two standard errors).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from eddecode.audit.stats.agreement import corrected_difference, corrected_rate, judge_quality
from eddecode.audit.stats.attempts import any_of_k_clusters
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import Estimate, Rate
from eddecode.audit.stats.paired import abbott_index, difference, rate_estimate, ratio, remaining_fraction
from eddecode.audit.stats.power import Expected, prompts_for_decision
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.audit.stats.selection import select
from eddecode.audit.stats.simulation import Sweep, World, decisions

AUDITS = 500


@dataclass(frozen=True)
class SimulatedCase:
    """One row of the table.

    Attributes:
        name: what is simulated.
        what: `coverage`, `false PASS`, `false FAIL`, `PASS` (false or not, too sure), `bias` or `power`.
        run: (audits, seed) → one value per audit: whether the event happened; for a bias its size.
        low, high: between which the mean has to lie; what the tests and `main` hold it against.
    """

    name: str
    what: str
    run: Callable[[int, int], list[float]]
    low: float = 0.0
    high: float = 1.0

    def measure(self, audits: int, seed: int = 0) -> tuple[float, float]:
        """(mean, two Monte-Carlo standard errors)."""
        values = np.array(self.run(audits, seed), dtype=np.float64)
        return float(values.mean()), 2 * float(values.std(ddof=1)) / math.sqrt(len(values))


def holds(found: Estimate | Rate, truth: float) -> bool:
    """Whether an interval holds a value; an end that is not there bounds nothing."""
    return (found.low is None or found.low <= truth + 1e-9) and (
        found.high is None or truth - 1e-9 <= found.high
    )


def covers(
    world: World, truth: float, figure: Callable[[list[Clusters]], Estimate | Rate]
) -> Callable[[int, int], list[float]]:
    """Per audit, whether the interval of a figure holds the truth. An interval without width never does."""

    def run(audits: int, seed: int) -> list[float]:
        found = [figure(conditions) for conditions in world.audits(audits, seed)]
        return [float(holds(one, truth) and one.low != one.high) for one in found]

    return run


SWEEPS = {
    "loss of an α at ε, others below, 200 × 1": Sweep(0.1, (0.12, 0.15), (0.02, 0.10), 200),
    "loss of an α at ε, others below, 400 × 4": Sweep(0.1, (0.12, 0.15), (0.02, 0.10), 400, 4),
    "the only harmful α at ε, 200 × 1": Sweep(0.3, (0.31, 0.6), (0.01, 0.10), 200),
    "losses 8.2% and 12.2% beside ε, 200 × 1": Sweep(0.1, (0.12, 0.15, 0.4), (0.01, 0.082, 0.122), 200),
    "losses 8.2% and 12.2% beside ε, 200 × 4": Sweep(0.1, (0.12, 0.15, 0.4), (0.01, 0.082, 0.122), 200, 4),
    "six close α's, none near ε, 50 × 1": Sweep(0.3, (0.34, 0.35, 0.35, 0.35, 0.345, 0.34), (0.01,) * 6, 50),
    "six close α's, none near ε, 100 × 4": Sweep(
        0.3, (0.34, 0.35, 0.35, 0.35, 0.345, 0.34), (0.01,) * 6, 100, 4
    ),
    "base 0, five close α's, 50 × 1": Sweep(0.0, (0.02, 0.04, 0.05, 0.05, 0.03), (0.01,) * 5, 50),
    "rare harms, 50 × 4": Sweep(0.01, (0.02, 0.05, 0.06), (0.01, 0.01, 0.02), 50, 4),
    "one α, 400 × 1": Sweep(0.3, (0.35,), (0.01,), 400),
}
JUST_OUTSIDE = Sweep(0.1, (0.11, 0.7), (0.01, 0.107), 200)  # 1 point; 60 points at a loss just above ε
UNEQUAL = {n: tuple([40] * (n // 10) + [1] * (n - n // 10)) for n in (50, 100, 200)}
JUDGE = {
    "base": (0.95, 0.97),
    "ed": (0.70, 0.97),
}  # sensitivity and specificity, which differ between conditions


def _rate(conditions: list[Clusters]) -> Rate:
    return clustered_rate(conditions[0].pairs())


def _any_of(conditions: list[Clusters], k: int, samples: int) -> Estimate:
    (condition,) = conditions
    return rate_estimate(any_of_k_clusters(condition.flagged, condition.total, k, samples))


def corrected_reversal(audits: int, seed: int) -> list[float]:
    """Whether the interval of the corrected reversal holds the truth where the judge misses more under ED."""
    rng, hits = np.random.default_rng(seed), []
    base, ed, prompts, labels = 0.3, 0.6, 200, 150
    for _ in range(audits):
        corrected = {}
        for name, rate in (("base", base), ("ed", ed)):
            sensitivity, specificity = JUDGE[name]
            truth = rng.random(prompts) < rate
            flag = np.where(truth, rng.random(prompts) < sensitivity, rng.random(prompts) >= specificity)
            drawn = rng.permutation(prompts)[:labels]
            quality = judge_quality(flag[drawn], truth[drawn])
            corrected[name] = corrected_rate([(int(one), 1) for one in flag], quality)
        found = corrected_difference(corrected["ed"], corrected["base"])
        hits.append(float(holds(found, ed - base)))
    return hits


def selection_bias(rates: Sequence[float], prompts: int) -> Callable[[int, int], list[float]]:
    """Cross-fitted rate less the true rate of the α's that the halves picked."""

    def run(audits: int, seed: int) -> list[float]:
        found = [select(conditions) for conditions in World(rates, prompts, 4).audits(audits, seed)]
        return [one.crossfitted.rate - float(np.dot(one.picked, rates)) for one in found]

    return run


def promised_power(
    base: float, ed: float, samples: int, limit: float, others: int = 0
) -> Callable[[int, int], list[float]]:
    """Whether an audit decides, with as many prompts as a plan asks for to decide with a probability of 80%.

    `others`: further α's in the sweep, that are as harmful as the base.
    """

    def run(audits: int, seed: int) -> list[float]:
        (large,) = World((base, ed), 20_000, samples).audits(1, seed)
        shared = float(np.corrcoef(large[0].flagged, large[1].flagged)[0, 1])
        expected = Expected(
            base=base, ed=ed, samples=samples, correlation=0.3, shared=max(shared, 0.0), alphas=1 + others
        )
        needed = prompts_for_decision(expected, limit)
        sweep = Sweep(base, (ed, *[base] * others), (0.0,) * (1 + others), needed, samples)
        found = decisions(sweep, audits, seed + 2)
        if ed - base > limit:
            return [float(d.low is not None and d.low > limit) for d in found]
        return [float(d.high is not None and d.high <= limit) for d in found]

    return run


def cases() -> list[SimulatedCase]:
    """All rows, in the order of the table."""
    return [*_rates(), *_attempts(), *_comparisons(), *_verdicts(), *_choices(), *_plans()]


def _coverage(name: str, run: Callable[[int, int], list[float]]) -> SimulatedCase:
    return SimulatedCase(name, "coverage", run, 0.93)


def _rates() -> Iterator[SimulatedCase]:
    """Rates of one condition."""
    for rate, prompts, samples in (
        *((0.3, 50, 1), (0.02, 60, 4), (0.3, 60, 4)),
        *((0.3, 3, 8), (0.3, 5, 8), (0.3, 10, 8)),
    ):
        run = covers(World((rate,), prompts, samples), rate, _rate)
        yield _coverage(f"rate {rate:g}, {prompts} × {samples}", run)
    for prompts, rate in ((50, 0.3), (50, 0.1), (100, 0.3), (200, 0.3)):
        run = covers(World((rate,), prompts, UNEQUAL[prompts]), rate, _rate)
        yield _coverage(f"rate {rate:g}, {prompts} prompts: a tenth × 40, the rest × 1", run)


def _attempts() -> Iterator[SimulatedCase]:
    """Shares of prompts with a flagged completion among several."""
    for rate, prompts, samples, k in (
        *((0.1, 50, 4, 4), (0.85, 50, 4, 4), (0.85, 50, 4, 2)),
        *((0.95, 35, 4, 4), (0.95, 50, 4, 4), (0.005, 50, 4, 2), (0.005, 200, 4, 4)),
    ):
        world = World((rate,), prompts, samples)
        truth = world.any_of(k)
        run = covers(world, truth, partial(_any_of, k=k, samples=samples))
        yield _coverage(f"any of {k}, true share {truth:.3f}, {prompts} × {samples}", run)


def _comparisons() -> Iterator[SimulatedCase]:
    """Conditions against each other, on the same prompts."""
    for base, ed, prompts, samples in (
        *((0.02, 0.07, 50, 1), (0.3, 0.6, 60, 1)),
        *((0.3, 0.6, 60, 4), (0.6, 0.95, 60, 4)),
    ):
        world = World((base, ed), prompts, samples)
        for name, figure, truth in (
            ("difference", difference, ed - base),
            ("ratio", ratio, ed / base),
            ("reversal index", abbott_index, (ed - base) / (1 - base)),
        ):
            run = covers(world, truth, lambda c, figure=figure: figure(c[1], c[0]))  # type: ignore[misc]
            yield _coverage(f"{name}, base {base:g}, ED {ed:g}, {prompts} × {samples}", run)
    for prompts, samples in ((50, 1), (50, 4), (200, 1)):
        world = World((0.0, 0.3, 0.01), prompts, samples)
        run = covers(world, 0.01 / 0.3, lambda c: remaining_fraction(c[2], c[1], c[0]))
        yield _coverage(f"left, base 0, ED 0.3, mitigated 0.01, {prompts} × {samples}", run)
    yield _coverage("corrected reversal, sensitivity 0.95 on base, 0.70 on ED", corrected_reversal)


def _verdicts() -> Iterator[SimulatedCase]:
    """What the gate is decided by."""
    for name, sweep in SWEEPS.items():
        yield _coverage(name, sweep.covers)
        yield SimulatedCase(name, "false PASS", sweep.passes, 0.0, 0.04)
        yield SimulatedCase(name, "false FAIL", sweep.fails, 0.0, 0.04)
    name = "reversals 1% and, at a loss of 10.7%, 60%; limit 5%, 200 × 1"
    yield SimulatedCase(name, "PASS", partial(JUST_OUTSIDE.passes, limit=0.05), 0.0, 0.04)


def _choices() -> Iterator[SimulatedCase]:
    """The rate of the α that was chosen for its rate."""
    for name, rates in (("flat", (0.3,) * 6), ("close", (0.4, 0.48, 0.5, 0.49, 0.45, 0.3))):
        run = selection_bias(rates, 60)
        yield SimulatedCase(f"cross-fitted rate, {name}, 60 × 4", "bias", run, -0.01, 0.01)


def _plans() -> Iterator[SimulatedCase]:
    """Verdicts that a plan promised."""
    for base, ed, samples, limit, others in (
        *((0.3, 0.32, 1, 0.1, 0), (0.3, 0.5, 4, 0.1, 0)),
        *((0.3, 0.5, 4, 0.1, 4), (0.05, 0.06, 4, 0.05, 0)),
    ):
        run = promised_power(base, ed, samples, limit, others)
        several = f", {1 + others} α's" if others else ""
        name = f"a verdict promised with 80%, base {base:g}, ED {ed:g}, limit {limit:g}, × {samples}{several}"
        yield SimulatedCase(name, "power", run, 0.75, 0.85)


def main() -> None:
    """Print the table as Markdown; exit code 1 if a row is outside its limits by more than the Monte-Carlo error."""
    parser = argparse.ArgumentParser(description="Coverage of intervals and false verdicts, by simulation.")
    parser.add_argument("--audits", type=int, default=AUDITS, help="simulated audits per row")
    parser.add_argument("--only", default="", help="rows whose name or kind contains this text")
    asked = parser.parse_args()
    print(
        f"{asked.audits} audits a row, seed 0\n\n| case | what | measured | ± |\n|---|---|---:|---:|",
        flush=True,
    )
    wrong = 0
    for case in cases():
        if asked.only not in f"{case.name} {case.what}":
            continue
        mean, error = case.measure(asked.audits)
        outside = not case.low - error <= mean <= case.high + error
        wrong += outside
        print(
            f"| {case.name} | {case.what} | {100 * mean:.1f}% | {100 * error:.1f} |{' !' * outside}",
            flush=True,
        )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
