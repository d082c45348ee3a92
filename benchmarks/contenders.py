"""Who competes: eddecode, and the three alternatives that it is measured against.

A contender is made once for a pair, and then does work of any kind. Making it may take its time (packing weights,
trying out decoders), as loading a model may; doing the work is what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.alternatives import AuthorsWay, Floor, ProcessorWay
from benchmarks.compiled import CompiledFloor
from benchmarks.errors import NotAvailable
from benchmarks.pairs import BenchPair
from benchmarks.tasks import Work
from eddecode import Sampler, SamplingParams


class Contender(Protocol):
    """Does the work of a task."""

    def complete(self, work: Work) -> list[list[int]]:
        """The token ids of `work.rows` completions, by α and then by prompt."""
        ...

    def score(self, work: Work) -> list[list[float]]:
        """Per α, the log-probability in nats of each given completion under the contrast."""
        ...


class Eddecode:
    """Ours.

    Args:
        pair: what to run.
        make_sampler: how to make the sampler; by default the one of the pair's variant in SAMPLERS.
    """

    def __init__(self, pair: BenchPair, make_sampler: Callable[[BenchPair], Any] | None = None) -> None:
        self.sampler = (make_sampler or SAMPLERS[pair.variant])(pair)
        _ = self.sampler.runner  # made now, as loading is not what is measured

    def complete(self, work: Work) -> list[list[int]]:
        """All α's of all prompts in one call: the engine fills its slots as it likes."""
        prompts = list(work.prompts) * len(work.alphas)
        params = [
            SamplingParams(
                alpha=alpha,
                temperature=work.temperature,
                max_new_tokens=work.new_tokens,
                ignore_eos=True,
                seed=work.seed,
            )
            for alpha in work.alphas
            for _ in work.prompts
        ]
        return [completion.token_ids for completion in self.sampler.generate(prompts, params)]

    def score(self, work: Work) -> list[list[float]]:
        """One pass of each model for all α's; equal prompts are read once."""
        scores = self.sampler.score(work.prompts, work.completions, work.alphas)
        return [[score.logprobs[i] for score in scores] for i in range(len(work.alphas))]


def plain_sampler(pair: BenchPair) -> Sampler:
    """Two backbones, the one way there is for any pair."""
    return Sampler(pair.model_pair())


def shared_sampler(pair: BenchPair) -> Sampler:
    """One backbone for both: the low-rank change is known, as it is when an adapter was loaded."""
    models = pair.model_pair()
    models.aligned.low_rank_factors = dict(pair.factors or {})
    return Sampler(models)


# How ours is made per variant of a pair.
SAMPLERS: dict[str, Callable[[BenchPair], Any]] = {"full": plain_sampler, "lora": shared_sampler}


@dataclass(frozen=True)
class Entry:
    """A contender in the registry.

    Attributes:
        name: in options and JSON.
        label: in tables and pictures.
        make: from a pair.
        models: how many of the pair's models it runs.
        usual: whether it takes part without being asked for.
    """

    name: str
    label: str
    make: Callable[[BenchPair], Contender]
    models: int = 2
    usual: bool = True


OURS = "eddecode"
CONTENDERS = {
    entry.name: entry
    for entry in (
        Entry(OURS, "eddecode", Eddecode),
        Entry("authors", "(a) wrapper inside generate", AuthorsWay),
        Entry("processor", "(b) logits processor", ProcessorWay),
        Entry("floor", "(c) base model alone", Floor, models=1),
        Entry("compiled", "(d) base model alone, compiled", CompiledFloor, models=1, usual=False),
    )
}
USUAL = [entry.name for entry in CONTENDERS.values() if entry.usual]


def do(contender: Contender, work: Work) -> Sequence[Sequence[float]]:
    """Do the work, and insist that all of it was done."""
    result: Sequence[Sequence[float]]
    if work.scoring:
        result = contender.score(work)
        counts = {len(row) for row in result}
        if counts - {len(work.completions)}:
            raise AssertionError(f"expected {len(work.completions)} scores per α, got {sorted(counts)}")
        return result
    result = contender.complete(work)
    lengths = sorted({len(row) for row in result})
    if len(result) != work.rows or lengths != [work.new_tokens]:
        raise AssertionError(
            f"expected {work.rows} completions of {work.new_tokens} tokens, got {len(result)} of lengths {lengths}"
        )
    return result


__all__ = ["CONTENDERS", "OURS", "SAMPLERS", "USUAL", "Contender", "Eddecode", "Entry", "NotAvailable", "do"]
