"""Every speed-up on its own, and all of them together: the tokens and the probabilities are those of neither.

What the engine gives with a speed-up must be what two models give that are run from scratch for every token
(`reference.py`). Each speed-up is one entry of SWITCHES: how to do without it, and how to see that it was at work: a
switch that switches nothing would make every comparison here an empty one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import pytest
import torch

from eddecode.engine import engine as engine_module
from eddecode.engine.scheduler import PrefixCache, Scheduler
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.execution.compiled.cpu_backend import CpuBackend
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from eddecode.sampling.rng import stream_key, uniforms
from eddecode_kernels import sample_cpu as cpu
from eddecode_kernels.decoder_cpu import CpuDecoderLayers
from eddecode_kernels.layers_cpu import compiled_linear
from helpers import reference, tiny
from helpers.decoding import tokens

Patch = pytest.MonkeyPatch
Used = Counter[str]

NEW = 10  # tokens per completion
# float32 logits of two ways to sum: some 1e-6 of their size, times (1+2α) in the contrast. Far below what a wrong mask,
# position or weight does, which is off by tenths.
LIMIT = 1e-4
COMPILED = compiled_linear(torch.zeros(1, 1), None, torch.float32) is not None


# The pairs ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def pair_of(kind: str) -> ModelPair:
    """Two checkpoints that differ in every tensor; or base and low-rank change."""
    base = tiny.tiny_model("llama", num_hidden_layers=3)
    aligned = tiny.tiny_aligned(base)
    if kind == "lora":
        aligned, factors = low_rank(base)
        aligned.low_rank_factors = factors  # as loading an adapter leaves it
    return ModelPair.from_models(base, aligned)


def low_rank(base: Any) -> tuple[Any, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A copy of the base with B·A on top of some of its layers, and the A's and B's."""
    aligned, factors = copy.deepcopy(base), {}
    generator = torch.Generator().manual_seed(8)
    for name, module in aligned.model.named_modules(prefix="model"):
        if name.endswith(("q_proj", "v_proj", "gate_proj", "down_proj")):
            a = 0.3 * torch.randn(3, module.in_features, generator=generator)
            b = 0.3 * torch.randn(module.out_features, 3, generator=generator)
            module.weight.data += b @ a
            factors[name] = (a, b)
    return aligned, factors


# What is asked, and the oracle's answers ----------------------------------------------------------------------------


def requests() -> tuple[list[RenderedPrompt], list[SamplingParams]]:
    """Greedy and sampled rows; prompts that several rows share, and one that both models share; one repeats itself.

    Every prompt with greedy and sampled rows, every setting with some prompt: what a speed-up does to a row depends on
    its prompt's length and on how its token is chosen, not on every pair of the two.
    """
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(6, tiny.VOCAB, (5, 40), generator=generator).tolist()
    prompts = [
        RenderedPrompt(ids[0][:5], ids[1][:17]),
        RenderedPrompt(ids[2][:23], ids[2][:23]),
        RenderedPrompt(ids[3][:4] * 3, ids[4][:9]),
    ]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=NEW, ignore_eos=True, logprobs=True)
    sampled = greedy.replace(temperature=1.0, seed=5)
    kinds = [
        greedy.replace(alpha=0.4),
        greedy.replace(alpha=-1.0),
        greedy.replace(alpha=2.0),
        sampled.replace(alpha=0.2),
        sampled.replace(alpha=1.0, temperature=0.7, top_k=40, top_p=0.9),
        sampled.replace(alpha=0.6, min_p=0.01, plausibility=0.001),
    ]
    chosen = ((0, 1, 3), (2, 4, 5), (0, 2, 4))
    return (
        [prompt for prompt, mine in zip(prompts, chosen, strict=True) for _ in mine],
        [kinds[i] for mine in chosen for i in mine],
    )


@lru_cache(maxsize=8)
def naive(kind: str) -> list[reference.Continuation]:
    """Both models from scratch for every token, with the uniforms of the requests."""
    models = pair_of(kind).models
    made = []
    for prompt, p in zip(*requests(), strict=True):
        u = None
        if p.temperature > 0:
            u = uniforms(stream_key(p.seed, prompt.digest, 0), 0, NEW).tolist()
        filters = {"top_k": p.top_k, "top_p": p.top_p, "min_p": p.min_p, "plausibility": p.plausibility}
        made.append(
            reference.generate(
                models, prompt.ids, p.alpha, NEW, uniforms=u, temperature=p.temperature or 1.0, **filters
            )
        )
    assert len({token for row in made for token in row.ids}) > 20  # a model that says one thing shows nothing
    return made


# The switches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    """A speed-up.

    Attributes:
        off: do without it.
        on: make sure of it, and count its uses.
        needs: another one that it is a part of.
        pairs: the kinds of pairs that it is for.
        compiled: whether it takes a C++ compiler.
        options: of the sampler, where it is on.
    """

    off: Callable[[Patch], None]
    on: Callable[[Patch, Callable[[], None]], None]
    needs: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ("full", "lora")
    compiled: bool = False
    options: tuple[tuple[str, Any], ...] = ()


def made_by(*places: str, needs: tuple[str, ...] = ()) -> Switch:
    """A compiled layer: functions that make it, or None where there is none to be had."""

    def off(patch: Patch) -> None:
        for place in places:
            patch.setattr(place, lambda *args, **kwargs: None)

    def on(patch: Patch, count: Callable[[], None]) -> None:
        for place in places:
            patch.setattr(place, counted(place, count))
        patch.setattr("eddecode.execution.compiled.replace.is_faster_than_torch", lambda dtype: True)
        patch.setattr("eddecode.execution.patching.is_faster_than_torch", lambda dtype: True)

    return Switch(off, on, needs, compiled=True)


def counted(place: str, count: Callable[[], None]) -> Callable[..., Any]:
    """The function at a place; what it makes counts its calls."""
    module, _, name = place.rpartition(".")
    make = getattr(import_module(module), name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        return made and calling(made, count)

    return wrapped


def calling(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    """The function, which counts its calls."""

    def called(*args: Any, **kwargs: Any) -> Any:
        count()
        return function(*args, **kwargs)

    return called


def no_attention(patch: Patch) -> None:
    patch.setattr("eddecode.execution.runner.can_attend", lambda model: False)


def own_attention(patch: Patch, count: Callable[[], None]) -> None:
    patch.setattr(
        "eddecode.execution.attention.attend",
        calling(import_module("eddecode.execution.attention").attend, count),
    )


def no_blocks(patch: Patch) -> None:
    patch.setattr("eddecode.execution.compiled.replace.compile_decoder_layer", lambda *args: None)


def compiled_blocks(patch: Patch, count: Callable[[], None]) -> None:
    patch.setattr(CpuDecoderLayers, "__call__", calling(CpuDecoderLayers.__call__, count))
    patch.setattr(CpuBackend, "is_faster", lambda self, dtype: True)


def no_stack(patch: Patch) -> None:
    patch.setattr("eddecode.execution.compiled.replace.compile_decoder_stack", lambda *args: None)


def one_stack(patch: Patch, count: Callable[[], None]) -> None:
    def counted(stack: CpuDecoderLayers, *args: Any) -> Any:
        if len(stack) > 1:
            count()
        return call(stack, *args)

    call = CpuDecoderLayers.__call__
    patch.setattr(CpuDecoderLayers, "__call__", counted)


def reference_kernel(patch: Patch) -> None:
    patch.setenv("EDDECODE_KERNELS", "reference")


def compiled_kernel(patch: Patch, count: Callable[[], None]) -> None:
    patch.setenv("EDDECODE_KERNELS", "cpu")
    patch.setattr(cpu, "contrast_and_sample", calling(cpu.contrast_and_sample, count))


def one_at_a_time(patch: Patch) -> None:
    """Nothing: a sampler has one slot unless the switch gives it more."""


def together(patch: Patch, count: Callable[[], None]) -> None:
    sample = engine_module.sample

    def counted(batch: Any, *args: Any) -> Any:
        if len({sequence for sequence, _ in batch.positions}) > 1:
            count()
        return sample(batch, *args)

    patch.setattr(engine_module, "sample", counted)


def everyone_reads(patch: Patch) -> None:
    """A sequence enters alone, and its prefixes are dropped."""
    take, next_sequences = PrefixCache.take, Scheduler.next

    def take_and_drop(self: PrefixCache, sequence: Any) -> Any:
        results = take(self, sequence)
        self._results.clear()
        return results

    patch.setattr(PrefixCache, "take", take_and_drop)
    patch.setattr(Scheduler, "next", lambda self: next_sequences(self)[:1])


def read_once(patch: Patch, count: Callable[[], None]) -> None:
    missing = PrefixCache.missing

    def counted(self: PrefixCache, model: int, texts: Any) -> Any:
        batches = missing(self, model, texts)
        if sum(map(len, batches)) < len(texts):
            count()
        return batches

    patch.setattr(PrefixCache, "missing", counted)


def no_sharing(patch: Patch) -> None:
    patch.setattr(LoraPairRunner, "self_check", lambda self: "it is switched off")


def shared_backbone(patch: Patch, count: Callable[[], None]) -> None:
    patch.setattr(LoraPairRunner, "forward", calling(LoraPairRunner.forward, count))


def no_drafts(patch: Patch) -> None:
    """Nothing: a sampler drafts only if it is told to."""


def drafts(patch: Patch, count: Callable[[], None]) -> None:
    """Draft at every step, whether that pays or not."""
    init, propose = AdaptiveSpeculator.__init__, AdaptiveSpeculator.propose

    def always(self: AdaptiveSpeculator, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.num_draft_tokens = 2

    def counted(self: AdaptiveSpeculator, *args: Any) -> Any:
        draft = propose(self, *args)
        if draft.tokens:
            count()
        return draft

    patch.setattr(AdaptiveSpeculator, "__init__", always)
    patch.setattr(AdaptiveSpeculator, "propose", counted)


SWITCHES = {
    "linear": made_by(
        "eddecode.execution.compiled.replace.compiled_linear",
        "eddecode.execution.compiled.lora.compiled_linear",
    ),
    "norm": made_by("eddecode.execution.compiled.rms_norm.compiled_rms_norm"),
    "activation": made_by("eddecode.execution.compiled.replace.compiled_silu"),
    "head": made_by("eddecode.execution.patching.compiled_linear"),
    "attention": Switch(no_attention, own_attention, compiled=True),
    "blocks": Switch(no_blocks, compiled_blocks, needs=("attention",), compiled=True),
    "stack": Switch(no_stack, one_stack, needs=("blocks",), pairs=("full", "lora"), compiled=True),
    "kernel": Switch(reference_kernel, compiled_kernel, compiled=True),
    "batch": Switch(one_at_a_time, together, options=(("max_slots", 4),)),
    "prefixes": Switch(everyone_reads, read_once),
    "backbone": Switch(no_sharing, shared_backbone, pairs=("lora",)),
    "base drafts": Switch(no_drafts, drafts, options=(("speculation", "base"),)),
    "ngram drafts": Switch(no_drafts, drafts, options=(("speculation", "ngram"),)),
    "assistant drafts": Switch(
        no_drafts, drafts, options=(("speculation", tiny.tiny_model(num_hidden_layers=1)),)
    ),
}
DRAFTERS = ("base drafts", "ngram drafts", "assistant drafts")


def needed(chosen: Sequence[str]) -> set[str]:
    """These switches, and those that they are parts of."""
    return set(chosen).union(*(needed(SWITCHES[name].needs) for name in chosen))


def choose(patch: Patch, kind: str, chosen: Sequence[str]) -> tuple[Sampler, Used]:
    """A sampler with these speed-ups and no others, and which of them were at work since it was made."""
    used: Used = Counter()
    wanted = needed(chosen)
    for name, switch in SWITCHES.items():
        if name not in wanted:
            switch.off(patch)
    for name, switch in SWITCHES.items():
        if name in wanted:
            switch.on(patch, lambda name=name: used.update([name]))  # type: ignore[misc]
    options: dict[str, Any] = {"max_slots": 1}
    for name in wanted:
        options.update(SWITCHES[name].options)
    made = Sampler(pair_of(kind), **options)
    made.runner  # noqa: B018  # trials are over before anything counts
    used.clear()
    return made, used


def states(kind: str) -> list[tuple[str, ...]]:
    """None, each one, and all; with each drafter."""
    mine = [name for name, switch in SWITCHES.items() if kind in switch.pairs]
    without = [name for name in mine if name not in DRAFTERS]
    return [(), *((name,) for name in mine), *((*without, drafter) for drafter in DRAFTERS)]


CASES = [
    pytest.param(
        kind,
        chosen,
        id=f"{kind}-{chosen[0] if len(chosen) == 1 else f'all, {chosen[-1]}' if chosen else 'none'}",
    )
    for kind in ("full", "lora")
    for chosen in states(kind)
]


@pytest.mark.parametrize(("kind", "chosen"), CASES)
def test_tokens_and_probabilities_equal_naive_recomputation(
    kind: str, chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not COMPILED and any(SWITCHES[name].compiled for name in chosen):
        pytest.skip("no C++ compiler")
    sampler, used = choose(monkeypatch, kind, chosen)
    done = sampler.generate(*requests())
    expected = naive(kind)
    assert tokens(done) == [row.ids for row in expected]
    for completion, row in zip(done, expected, strict=True):
        found = [[token.base, token.aligned, token.contrast] for token in completion.logprobs or ()]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(row.logprobs), atol=LIMIT, rtol=0)
    if len(chosen) <= 1:
        assert set(chosen) <= set(used) <= needed(chosen)
    else:
        assert {"kernel", "batch", "prefixes", "head", "blocks", chosen[-1]} <= set(used)
        assert "stack" in used
