"""Simulated audits whose true rates are known: what `coverage` measures the intervals and verdicts on.

Prompts differ in how often their completions are flagged: a prompt's own rate is drawn from a beta distribution with
mean p and intra-prompt correlation ρ (the beta-binomial model). Conditions share a prompt's quantile, and half of the
random numbers, as common random numbers do. Utility is drawn independently of harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats as distributions

from eddecode.audit.stats.admissible import BestAdmissible, best_admissible
from eddecode.audit.stats.clusters import Clusters, Floats

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
