"""How many GPUs, hours and how much money an audit takes: from measured step times, by arithmetic.

A worker is the GPUs that hold one pair. It decodes `rows` completions at a time; a step adds a token to each, and takes
a time that was measured. Workers share the prompts and do not talk. What is beside decoding is counted too: reading the
weights, reading the prompts, the last completions that no other ones fill up, the judge, and the one process that
writes. Where a term is an assumption and not a measurement, it says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eddecode.errors import ConfigError
from eddecode.utils.validation import require_unique

WRITES = 5000.0
"""Completions per second that the store takes; `python -m benchmarks scale` measures it."""
READ = 1e9
"""Bytes of weights per second that are read at a start. Assumed: a network disk."""
PREFILL = 500e12
"""Operations per second of prefill; the slowest that was measured with more than 256 rows (docs/gpu.md)."""
ROOM = 0.8
"""Share of a GPU's memory for weights; the rest is for keys, values and activations. Assumed."""


@dataclass(frozen=True)
class Steps:
    """Measured times of a step of a pair.

    Attributes:
        milliseconds: rows → time of a step.
        weights: bytes of both models of that pair; 0 where it is the pair that is planned for.
        source: what was measured, and where.
    """

    milliseconds: Mapping[int, float]
    weights: float
    source: str

    def seconds(self, rows: int, weights: float) -> float:
        """A step of `rows` rows of a pair whose weights take so many bytes.

        Between two measured numbers of rows the time is interpolated, beyond the largest it grows in proportion. With
        the weights it grows in proportion: what does not (launches, attention) makes that an estimate from above.
        """
        known = sorted(self.milliseconds)
        below = max((n for n in known if n <= rows), default=known[0])
        above = min((n for n in known if n >= rows), default=known[-1])
        low, high = self.milliseconds[below], self.milliseconds[above]
        share = (rows - below) / (above - below) if above > below else 0.0
        time = low + share * (high - low) if rows <= known[-1] else high * rows / known[-1]
        return time / 1e3 * (weights / self.weights if self.weights else 1.0)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its memory in bytes, and step times measured on one, the fastest first."""

    memory: float
    steps: tuple[Steps, ...]


_PAIR_7B = 26.43e9  # bytes that a step of the measured pair reads, of both models
GPUS = {
    "h200": Gpu(
        141e9,
        (
            Steps(
                {1: 6.56, 8: 7.15, 64: 11.2},
                _PAIR_7B,
                "prototype of the captured step, 7B pair in bfloat16 (docs/gpu.md); the product's was not measured",
            ),
            Steps(
                {1: 14.0, 8: 23.5, 64: 29.4},
                _PAIR_7B,
                "an earlier eddecode with captured steps, the same pair (docs/gpu.md)",
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Work:
    """What an audit decodes.

    Attributes:
        prompts, samples, conditions: their product is the completions.
        tokens: of a completion, on average. longest: most tokens of one.
        prompt_tokens: of a prompt, on average.
        parameters: of both models together.
        weight_bytes: of a weight: 2 for bfloat16.
        judged: completions per second that the judge of one worker takes; None: judging is not counted.
    """

    prompts: int
    samples: int
    conditions: int
    tokens: float
    parameters: float
    longest: float | None = None
    prompt_tokens: float = 100.0
    weight_bytes: float = 2.0
    judged: float | None = None

    @property
    def completions(self) -> int:
        """In all."""
        return self.prompts * self.samples * self.conditions

    @property
    def weights(self) -> float:
        """Bytes of both models."""
        return self.parameters * self.weight_bytes


@dataclass(frozen=True)
class ClusterPlan:
    """What the work takes on a number of GPUs.

    Attributes:
        gpus: of all workers. per_pair: of one.
        hours: by the clock: the sum of the following terms, each in hours.
        decoding, prefill, start, last, judging: see `plan_cluster`.
        gpu_hours: GPUs times hours. cost: in the currency of the price; None without a price.
        writes: completions per second that come to the writer, if one process writes for all workers.
        bends: what no longer scales at this size, in words.
    """

    gpus: int
    per_pair: int
    hours: float
    decoding: float
    prefill: float
    start: float
    last: float
    judging: float
    gpu_hours: float
    cost: float | None
    writes: float
    bends: tuple[str, ...]


def gpus_per_pair(weights: float, memory: float) -> int:
    """GPUs that hold one pair: a power of two, since weights are split evenly.

    >>> gpus_per_pair(28e9, 141e9), gpus_per_pair(280e9, 141e9)
    (1, 4)
    """
    return int(2 ** math.ceil(math.log2(max(1.0, weights / (ROOM * memory)))))


def plan_cluster(
    work: Work, steps: Steps, gpus: int, per_pair: int, rows: int = 64, price: float | None = None
) -> ClusterPlan:
    """What the work takes on a number of GPUs.

    A pair on several GPUs is taken to be as many times faster; what they exchange was not measured and is not counted.

    Args:
        work: of the audit.
        steps: measured times.
        gpus: how many there are. per_pair: that one worker needs.
        rows: completions that a worker decodes at a time.
        price: of a GPU for an hour.

    Raises:
        ConfigError: there are fewer GPUs than one pair needs.
    """
    workers = gpus // per_pair
    if workers < 1:
        raise ConfigError(
            f"one pair of {work.weights / 1e9:.0f} GB needs {per_pair} GPUs, and {gpus} are there; plan with more, or "
            "with fewer bits (--bits)"
        )
    workers = min(workers, work.prompts)  # a shard is some of the prompts
    mine = work.completions / workers
    rows = min(rows, math.ceil(mine))
    step = steps.seconds(rows, work.weights) / per_pair
    seconds = {
        "decoding": mine * work.tokens / rows * step,
        "prefill": 2 * work.parameters * work.prompts / workers * work.prompt_tokens / (PREFILL * per_pair),
        "start": work.weights / READ,
        "last": (work.longest or 0.0) * step,
        "judging": 0.0 if work.judged is None else mine / work.judged,
    }
    hours = {name: value / 3600 for name, value in seconds.items()}
    total = sum(hours.values())
    used = workers * per_pair
    writes = workers * rows / (work.tokens * step)
    return ClusterPlan(
        gpus=used,
        per_pair=per_pair,
        hours=total,
        **hours,
        gpu_hours=used * total,
        cost=None if price is None else used * total * price,
        writes=writes,
        bends=_bends(hours, total, writes, gpus - used),
    )


def _bends(hours: Mapping[str, float], total: float, writes: float, idle: int) -> tuple[str, ...]:
    """What takes the place of decoding as the limit."""
    found = []
    if writes > WRITES:
        found.append(
            f"{writes:,.0f} completions/s for one writer, which takes {WRITES:,.0f}: use shards, which write their own"
        )
    words = {
        "judging": "the judge: give it GPUs of its own, or judge later (--judge later)",
        "start": "reading the weights: fewer workers, or a local disk",
        "last": "the last completions: fewer workers, or more samples at a time",
    }
    found += [
        f"{100 * hours[name] / total:.0f}% of the time is {text}"
        for name, text in words.items()
        if hours[name] > total / 4
    ]
    if idle:
        found.append(
            f"{idle} GPUs are idle: they hold no whole pair, or there are fewer prompts than workers"
        )
    return tuple(found)


def parse_steps(text: str) -> Steps:
    """Step times of one's own pair: `64:112` or `8:70,64:112`, rows and milliseconds.

    >>> parse_steps("64:112").milliseconds
    {64: 112.0}

    Raises:
        ConfigError: it is of another form.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        found = {int(rows): float(time) for rows, time in pairs}
        require_unique((int(rows) for rows, _ in pairs), "number of rows")
    except ValueError:
        found = {}
    if not found or any(n < 1 or not (math.isfinite(t) and t > 0) for n, t in found.items()):
        raise ConfigError(
            f"step times {text!r:.60}: expected ROWS:MILLISECONDS, such as 64:112 or 8:70,64:112"
        )
    return Steps(found, 0.0, "given")
