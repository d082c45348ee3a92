"""Which alternatives are compared: eddecode, and the ones that it is measured against.

An alternative is built once for a pair, and then does work of any kind. Building it (packing weights, self-checks) is
not timed, as loading a model is not; doing the work is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from benchmarks.alternatives import AuthorsWrapper, BaseAlone, ProcessorPair
from benchmarks.compiled import CompiledBaseAlone, StaticBaseAlone, StaticProcessorPair
from benchmarks.pairs import BenchPair
from benchmarks.tasks import Work
from eddecode import Sampler, SamplingParams


class Alternative(Protocol):
    """Does the work of a task."""

    def complete(self, work: Work) -> list[list[int]]:
        """The token ids of `work.rows` completions, by α and then by prompt.

        Raises:
            NotAvailable: it cannot do this work.
        """
        ...

    def score(self, work: Work) -> list[list[float]]:
        """Per α, the log-probability in nats of each given completion under the contrast.

        Raises:
            NotAvailable: it cannot do this work.
        """
        ...


class Eddecode:
    """eddecode's Sampler.

    Args:
        pair: what to run.
        make_sampler: makes the sampler; by default the one of SAMPLERS for the pair's variant.
    """

    def __init__(self, pair: BenchPair, make_sampler: Callable[[BenchPair], Any] | None = None) -> None:
        self.sampler = (make_sampler or SAMPLERS[pair.variant])(pair)
        _ = self.sampler.runner  # built now, as loading is not what is measured

    def complete(self, work: Work) -> list[list[int]]:
        """All α's of all prompts in one call."""
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


def two_model_sampler(pair: BenchPair, **options: Any) -> Sampler:
    """Two models, as for any pair; `options` are those of `Sampler`."""
    return Sampler(pair.model_pair(), **options)


def lora_sampler(pair: BenchPair) -> Sampler:
    """One backbone for both models: the low-rank change is known, as it is when an adapter was loaded."""
    models = pair.model_pair()
    models.aligned.low_rank_factors = dict(pair.factors or {})
    return Sampler(models)


# Variant of a pair → how eddecode's sampler is made.
SAMPLERS: dict[str, Callable[[BenchPair], Any]] = {"full": two_model_sampler, "lora": lora_sampler}


@dataclass(frozen=True)
class Entry:
    """An alternative in the registry.

    Attributes:
        name: in options and JSON.
        label: in tables and plots.
        make: builds it for a pair.
        models: how many of the pair's models it runs.
        default: whether it takes part without being named in the options.
    """

    name: str
    label: str
    make: Callable[[BenchPair], Alternative]
    models: int = 2
    default: bool = True


OURS, FLOOR = "eddecode", "floor"
_captured = partial(two_model_sampler, cuda_graphs=True)
_launched = partial(two_model_sampler, cuda_graphs=False)
ALTERNATIVES = {
    entry.name: entry
    for entry in (
        Entry(OURS, "eddecode", Eddecode),
        Entry("graphs", "eddecode, CUDA graphs", lambda pair: Eddecode(pair, _captured), default=False),
        Entry("launched", "eddecode, launched", lambda pair: Eddecode(pair, _launched), default=False),
        Entry("authors", "(a) wrapper inside generate", AuthorsWrapper),
        Entry("processor", "(b) logits processor", ProcessorPair),
        Entry(FLOOR, "(c) base model alone", BaseAlone, models=1),
        Entry("compiled", "(d) base model alone, compiled", CompiledBaseAlone, models=1, default=False),
        Entry("static-pair", "(e) like (b), static caches", StaticProcessorPair, default=False),
        Entry("static-floor", "(f) like (c), static cache", StaticBaseAlone, models=1, default=False),
    )
}
DEFAULTS = [entry.name for entry in ALTERNATIVES.values() if entry.default]


def do(alternative: Alternative, work: Work) -> Sequence[Sequence[float]]:
    """Do the work, and check that all of it was done.

    Raises:
        NotAvailable: the alternative cannot do this work.
        AssertionError: it did less than the work.
    """
    result: Sequence[Sequence[float]]
    if work.scoring:
        result = alternative.score(work)
        counts = {len(row) for row in result}
        if counts - {len(work.completions)}:
            raise AssertionError(f"expected {len(work.completions)} scores per α, got {sorted(counts)}")
        return result
    result = alternative.complete(work)
    lengths = sorted({len(row) for row in result})
    if len(result) != work.rows or lengths != [work.new_tokens]:
        raise AssertionError(
            f"expected {work.rows} completions of {work.new_tokens} tokens, got {len(result)} of lengths {lengths}"
        )
    return result
