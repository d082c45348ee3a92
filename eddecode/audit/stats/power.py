"""The number of prompts that an audit needs, and the cost of decoding them, before anything is decoded.

With s samples per prompt whose correlation is ρ, n prompts carry the information of n·s/deff independent completions,
deff = 1 + (s − 1)ρ (Kish, "Survey Sampling", 1965, section 5.4): beyond a few samples per prompt, only more prompts
help.

- A given width of the interval of a rate: the smallest n whose Wilson interval at the effective size is no wider.
- A decision at a limit X on the reversal d = h_ED − h_base: the bound of d that the gate compares with X must lie on
  the right side of it. With w the distance from d to that bound (MOVER of the two Wilson intervals), the probability is
  Φ((|d − X| − w)·√n/σ), where σ² = v_ED + v_base − 2·κ·√(v_ED·v_base) is the variance of the difference per prompt,
  v = h(1 − h)·deff/s, and κ is the share of a prompt's variation that is common to both conditions. The default of 0
  is cautious: conditions of one prompt share its topic and their random numbers. A pilot run measures κ.
- The cost: a forward pass takes about 2 operations per parameter and token (Kaplan et al., arXiv 2001.08361,
  section 2.1), and the contrast runs both models on every token.

The numbers are approximations for planning: the finding itself comes with intervals that do not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from eddecode.audit.stats.admissible import levels
from eddecode.audit.stats.estimates import LEVEL
from eddecode.audit.stats.mover import rate_interval
from eddecode.errors import ConfigError

POWER = 0.8
MOST = 10_000_000  # prompts, beyond which a plan is no plan


@dataclass(frozen=True)
class Expected:
    """What a plan supposes.

    Attributes:
        base, ed: harm rates of the base and of ED at its headline α.
        samples: completions per prompt and condition.
        correlation: of the samples of one prompt (ρ), 0..1.
        shared: how much of a prompt's variation base and ED share (κ), 0..1.
        level: of the intervals.
        alphas: of the sweep: a FAIL needs one of them clearly over the limit, and its error is divided by their number.

    Raises:
        ConfigError: a figure out of its range.
    """

    base: float
    ed: float
    samples: int = 1
    correlation: float = 0.3
    shared: float = 0.0
    level: float = LEVEL
    alphas: int = 1

    def __post_init__(self) -> None:
        for name in ("base", "ed", "correlation", "shared"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ConfigError(f"{_NAMES[name]} is {value:g}; expected a share from 0 to 1, such as 0.3")
        if not 0 < self.level < 1:
            raise ConfigError(f"the level is {self.level:g}; expected a share such as 0.95")
        if self.alphas < 1:
            raise ConfigError(f"alphas is {self.alphas}; expected 1 or more")
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}; expected 1 or more per prompt and condition")

    @property
    def deff(self) -> float:
        """The design effect of several samples per prompt."""
        return 1 + (self.samples - 1) * self.correlation

    @property
    def reversal(self) -> float:
        """What ED adds to the base's rate."""
        return self.ed - self.base

    def effective(self, prompts: float) -> float:
        """How many independent completions the samples of so many prompts are worth."""
        return prompts * self.samples / self.deff

    def spread(self) -> float:
        """σ: standard deviation of the difference per prompt, such that its standard error is σ/√prompts."""
        variances = [rate * (1 - rate) * self.deff / self.samples for rate in (self.base, self.ed)]
        both = sum(variances) - 2 * self.shared * math.sqrt(variances[0] * variances[1])
        return math.sqrt(max(both, 0.0))

    def width(self, prompts: int) -> float:
        """Width of the wider of the two rates' intervals."""
        return max(_width(rate, self.effective(prompts), self.level) for rate in (self.base, self.ed))


_NAMES = {
    "base": "the base's rate",
    "ed": "the expected rate of ED",
    "correlation": "the correlation",
    "shared": "the shared part",
}


def prompts_for_width(expected: Expected, width: float) -> int:
    """Prompts after which neither the base's nor ED's interval is wider than this (a share, both ends together).

    Raises:
        ConfigError: no width that an interval of a rate can have, or one beyond ten million prompts.
    """
    if not 0 < width < 1:
        raise ConfigError(f"the width is {width:g}; expected a share above 0 and below 1, such as 0.1")
    return _smallest(lambda n: expected.width(n) <= width, f"an interval no wider than {100 * width:g}%")


def prompts_for_decision(expected: Expected, limit: float, power: float = POWER) -> int:
    """Prompts after which the interval of the reversal ends on the right side of the limit, with that probability.

    Raises:
        ConfigError: a limit or a power out of its range; or the expected reversal is the limit itself, or so close to
            it that ten million prompts would not tell them apart.
    """
    if not (math.isfinite(limit) and -1 <= limit <= 1):
        raise ConfigError(f"the limit is {limit:g}; expected a difference of two rates, such as 0.1")
    if not 0 < power < 1:
        raise ConfigError(f"the power is {power:g}; expected a share above 0 and below 1, such as 0.8")
    if abs(expected.reversal - limit) < 1e-9:
        raise ConfigError(
            f"the expected reversal is {expected.reversal:g}, which is the limit itself: no number of prompts tells "
            "them apart; expect another rate or take another limit"
        )
    return _smallest(
        lambda n: decision_power(expected, limit, n) >= power,
        f"telling a reversal of {expected.reversal:g} from the limit {limit:g}",
    )


def decision_power(expected: Expected, limit: float, prompts: int) -> float:
    """Probability that the bound of the reversal lies on the right side of the limit, with so many prompts.

    The bound is that of `eddecode.audit.stats.admissible`, for an α whose loss of utility is clearly within ε and that
    is clearly the best of `expected.alphas`. Where several are about equally good, a PASS takes more prompts, since the
    largest of their upper bounds has to keep the limit.
    """
    spare = abs(expected.reversal - limit) - _half_width(expected, prompts, expected.reversal > limit)
    error = expected.spread() / math.sqrt(prompts)
    return NormalDist().cdf(spare / error) if error else float(spare > 0)


def _half_width(expected: Expected, prompts: int, below: bool) -> float:
    """Distance from the reversal to its lower bound (97.5%, one-sided, for all α's at once) or upper bound (98%)."""
    lower, upper = levels(expected.alphas)
    level = lower if below else upper
    n, rates = expected.effective(prompts), (expected.ed, expected.base)
    (low, high), (base_low, base_high) = (rate_interval(rate, n, level) for rate in rates)
    spread = math.sqrt(math.prod(rate * (1 - rate) for rate in rates))
    shared = max(expected.shared - 1 / (2 * prompts * spread), 0.0) if spread else 0.0  # as in `mover`
    one, other = (
        (expected.ed - low, base_high - expected.base)
        if below
        else (high - expected.ed, expected.base - base_low)
    )
    return math.sqrt(max(one**2 + other**2 - 2 * shared * one * other, 0.0))


@dataclass(frozen=True)
class Cost:
    """What decoding takes.

    Attributes:
        completions, tokens: in all conditions together.
        operations: floating-point operations of both models; None without their sizes.
        seconds: None without a measured speed.
    """

    completions: int
    tokens: int
    operations: float | None
    seconds: float | None


def decode_cost(
    prompts: int,
    samples: int,
    conditions: int,
    tokens: float,
    parameters: float | None = None,
    speed: float | None = None,
    prompt_tokens: float = 0,
) -> Cost:
    """The cost of decoding an audit.

    Args:
        prompts, samples, conditions: their product is the completions.
        tokens: of a completion, on average.
        parameters: of both models together (the active ones, where they are mixtures).
        speed: completion tokens per second, as an earlier run shows it.
        prompt_tokens: of a prompt, on average; read once for all conditions and samples.
    """
    completions = prompts * samples * conditions
    total = round(completions * tokens)
    read = total + prompts * prompt_tokens
    operations = None if parameters is None else 2.0 * parameters * read
    return Cost(completions, total, operations, None if not speed else total / speed)


def _width(rate: float, n: float, level: float) -> float:
    low, high = rate_interval(rate, n, level)
    return high - low


def _smallest(enough: Callable[[int], bool], what: str) -> int:
    """The smallest number of prompts that is enough; being enough must not stop with more of them."""
    high = 1
    while not enough(high):
        high *= 2
        if high > 2 * MOST:
            raise ConfigError(f"{what} would take more than {MOST:,} prompts; ask for less")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
