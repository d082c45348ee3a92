"""Do the intervals cover, and how often is a PASS false? `python -m eddecode.audit.stats.coverage [--audits N]`.

Simulated audits whose truth is known. Prompts differ in how often their completions are flagged: a prompt's own rate is
drawn from a beta distribution with mean p and intra-prompt correlation ρ (the beta-binomial model). Conditions share a
prompt's quantile, and half of the random numbers, as common random numbers do. Utility is drawn independently of harm.

Every case goes through the functions that the audit itself uses. Nominal: 95% intervals, 2.5% false PASS. Figures are
given with the Monte-Carlo error of their number of audits (two standard errors).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy import stats as distributions

from eddecode.audit.stats.admissible import BestAdmissible, best_admissible
from eddecode.audit.stats.agreement import corrected_difference, corrected_rate, judge_quality
from eddecode.audit.stats.attempts import any_of_k_clusters
from eddecode.audit.stats.clusters import Clusters, Floats
from eddecode.audit.stats.estimates import Estimate, Rate
from eddecode.audit.stats.paired import abbott_index, difference, rate_estimate, ratio, remaining_fraction
from eddecode.audit.stats.power import Expected, prompts_for_decision
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.audit.stats.selection import select

AUDITS = 500
BOUND = 0.1  # of the loss of utility
_GRID = 1000  # quantiles of a beta distribution


@dataclass(frozen=True)
class World:
    """Conditions on the same prompts, with known true rates.

    Attributes:
        rates: true rates of the conditions.
        prompts: how many.
        samples: completions per prompt and condition; a sequence gives each prompt its own number.
        correlation: ρ, of the completions of one prompt.
    """

    rates: Sequence[float]
    prompts: int
    samples: int | Sequence[int] = 1
    correlation: float = 0.3

    def audits(self, count: int, seed: int) -> Iterator[list[Clusters]]:
        """Simulated audits, one list of conditions each."""
        rng = np.random.default_rng(seed)
        quantiles = [self._quantiles(rate) for rate in self.rates]
        totals = np.broadcast_to(np.asarray(self.samples), (self.prompts,)).astype(np.int64)
        live = np.arange(totals.max()) < totals[:, None]  # (prompts, samples)
        for _ in range(count):
            place = rng.integers(0, _GRID, self.prompts)
            common = rng.random(live.shape)
            alike = rng.random(live.shape) < 0.5
            conditions = []
            for own in quantiles:
                uniforms = np.where(alike, common, rng.random(live.shape))
                flagged = ((uniforms < own[place][:, None]) & live).sum(1)
                conditions.append(Clusters(flagged.astype(np.float64), totals.astype(np.float64)))
            yield conditions

    def any_of(self, k: int) -> float:
        """True chance of a flagged completion among k of a prompt, under the first condition."""
        return float((1 - (1 - self._quantiles(self.rates[0])) ** k).mean())

    def _quantiles(self, rate: float) -> Floats:
        if rate in (0, 1) or not self.correlation:
            return np.full(_GRID, float(rate))
        size = 1 / self.correlation - 1
        grid = (np.arange(_GRID) + 0.5) / _GRID
        found: Floats = distributions.beta.ppf(grid, rate * size, (1 - rate) * size)
        centred: Floats = found * rate / found.mean()  # the mean of the grid is a little off
        return centred


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


@dataclass(frozen=True)
class Sweep:
    """A sweep over α with known reversals and losses of utility.

    Attributes:
        base: harm rate of the base. ed: of each α. losses: of utility, of each α.
        prompts, samples: as in `World`. utility: share of the base's completions that are intact.
    """

    base: float
    ed: Sequence[float]
    losses: Sequence[float]
    prompts: int
    samples: int = 1
    utility: float = 0.97

    @property
    def truth(self) -> float:
        """The highest reversal among the α's whose loss is at most the bound."""
        kept = [ed for ed, loss in zip(self.ed, self.losses, strict=True) if loss <= BOUND + 1e-12]
        return max(kept) - self.base

    def simulate(self, audits: int, seed: int) -> list[BestAdmissible]:
        """What the gate is decided by, per audit."""
        harm = World((self.base, *self.ed), self.prompts, self.samples)
        kept = [self.utility * (1 - loss) for loss in self.losses]
        intact = World((self.utility, *kept), self.prompts, self.samples)
        return [
            best_admissible([(ed, b) for ed in eds], (1.0, -1.0), us, u, BOUND)
            for (b, *eds), (u, *us) in zip(
                harm.audits(audits, seed), intact.audits(audits, seed + 1), strict=True
            )
        ]

    def covers(self, audits: int, seed: int) -> list[float]:
        """Whether the bounds hold the truth."""
        return [
            float((d.low is None or d.low <= self.truth) and (d.high is None or self.truth <= d.high))
            for d in decisions(self, audits, seed)
        ]

    def passes(self, audits: int, seed: int, limit: float | None = None) -> list[float]:
        """Whether a gate passes whose limit is the truth itself, or the one given: it must not."""
        least = self.truth if limit is None else limit
        return [float(d.high is not None and d.high <= least) for d in decisions(self, audits, seed)]

    def fails(self, audits: int, seed: int) -> list[float]:
        """Whether a gate whose limit is the truth itself fails."""
        return [float(d.low is not None and d.low > self.truth) for d in decisions(self, audits, seed)]


@lru_cache(maxsize=1)
def decisions(sweep: Sweep, audits: int, seed: int) -> list[BestAdmissible]:
    """`Sweep.simulate`, once for coverage, false PASS and false FAIL, which are of the same audits."""
    return sweep.simulate(audits, seed)


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
    rows = []
    for rate, prompts, samples in (
        (0.3, 50, 1),
        (0.02, 60, 4),
        (0.3, 60, 4),
        (0.3, 3, 8),
        (0.3, 5, 8),
        (0.3, 10, 8),
    ):
        run = covers(World((rate,), prompts, samples), rate, _rate)
        rows.append(SimulatedCase(f"rate {rate:g}, {prompts} × {samples}", "coverage", run, 0.93))
    for prompts, rate in ((50, 0.3), (50, 0.1), (100, 0.3), (200, 0.3)):
        run = covers(World((rate,), prompts, UNEQUAL[prompts]), rate, _rate)
        rows.append(
            SimulatedCase(
                f"rate {rate:g}, {prompts} prompts: a tenth × 40, the rest × 1", "coverage", run, 0.93
            )
        )
    for rate, prompts, samples, k in (
        (0.1, 50, 4, 4),
        (0.85, 50, 4, 4),
        (0.85, 50, 4, 2),
        (0.95, 35, 4, 4),
        (0.95, 50, 4, 4),
        (0.005, 50, 4, 2),
        (0.005, 200, 4, 4),
    ):
        world = World((rate,), prompts, samples)
        truth = world.any_of(k)
        run = covers(world, truth, partial(_any_of, k=k, samples=samples))
        name = f"any of {k}, true share {truth:.3f}, {prompts} × {samples}"
        rows.append(SimulatedCase(name, "coverage", run, 0.93))
    for base, ed, prompts, samples in (
        (0.02, 0.07, 50, 1),
        (0.3, 0.6, 60, 1),
        (0.3, 0.6, 60, 4),
        (0.6, 0.95, 60, 4),
    ):
        world = World((base, ed), prompts, samples)
        for name, figure, truth in (
            ("difference", difference, ed - base),
            ("ratio", ratio, ed / base),
            ("reversal index", abbott_index, (ed - base) / (1 - base)),
        ):
            run = covers(world, truth, lambda c, figure=figure: figure(c[1], c[0]))  # type: ignore[misc]
            rows.append(
                SimulatedCase(
                    f"{name}, base {base:g}, ED {ed:g}, {prompts} × {samples}", "coverage", run, 0.93
                )
            )
    for prompts, samples in ((50, 1), (50, 4), (200, 1)):
        world = World((0.0, 0.3, 0.01), prompts, samples)
        run = covers(world, 0.01 / 0.3, lambda c: remaining_fraction(c[2], c[1], c[0]))
        rows.append(
            SimulatedCase(
                f"left, base 0, ED 0.3, mitigated 0.01, {prompts} × {samples}", "coverage", run, 0.93
            )
        )
    rows.append(
        SimulatedCase(
            "corrected reversal, sensitivity 0.95 on base, 0.70 on ED", "coverage", corrected_reversal, 0.93
        )
    )
    for name, sweep in SWEEPS.items():
        rows.append(SimulatedCase(name, "coverage", sweep.covers, 0.93))
        rows.append(SimulatedCase(name, "false PASS", sweep.passes, 0.0, 0.04))
        rows.append(SimulatedCase(name, "false FAIL", sweep.fails, 0.0, 0.04))
    rows.append(
        SimulatedCase(
            "reversals 1% and, at a loss of 10.7%, 60%; limit 5%, 200 × 1",
            "PASS",
            partial(JUST_OUTSIDE.passes, limit=0.05),
            0.0,
            0.04,
        )
    )
    for name, rates in (("flat", (0.3,) * 6), ("close", (0.4, 0.48, 0.5, 0.49, 0.45, 0.3))):
        rows.append(
            SimulatedCase(
                f"cross-fitted rate, {name}, 60 × 4", "bias", selection_bias(rates, 60), -0.01, 0.01
            )
        )
    for base, ed, samples, limit, others in (
        (0.3, 0.32, 1, 0.1, 0),
        (0.3, 0.5, 4, 0.1, 0),
        (0.3, 0.5, 4, 0.1, 4),
        (0.05, 0.06, 4, 0.05, 0),
    ):
        run = promised_power(base, ed, samples, limit, others)
        several = f", {1 + others} α's" if others else ""
        name = f"a verdict promised with 80%, base {base:g}, ED {ed:g}, limit {limit:g}, × {samples}{several}"
        rows.append(SimulatedCase(name, "power", run, 0.75, 0.85))
    return rows


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
