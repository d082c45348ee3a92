"""Builds a small pair from scratch: tokenizer, base, aligned model, measurement, model card.

Recipe and seed decide everything. Weights are trained in float32 and saved in bfloat16; the measurement loads the
saved checkpoints like any other checkpoint.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.experiments import corpus
from eddecode.experiments.model_card import CardFacts, write_card
from eddecode.experiments.pair_metrics import PairScore, pair_checks, score_pair
from eddecode.experiments.tokenizer import train_tokenizer, with_chat_template
from eddecode.experiments.training import (
    ALIGNMENT,
    IGNORED,
    PRETRAINING,
    Encoder,
    FitConfig,
    ModelShape,
    collate,
    fine_tune,
    pretrain,
    single_thread,
)
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.testbed import language
from eddecode.testbed.bundled import BundledPair


@dataclass(frozen=True)
class PairRecipe:
    """Everything that decides a build."""

    seed: int = 0
    shape: ModelShape = field(default_factory=ModelShape)
    pretraining: FitConfig = PRETRAINING
    alignment: FitConfig = ALIGNMENT
    alphas: tuple[float, ...] = (-1.0, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0, 3.0, 5.0)
    requests: int = corpus.HELD_OUT

    @classmethod
    def quick(cls, seed: int = 0) -> PairRecipe:
        """A pair in about a minute on one core: the same shape, trained for fewer steps, so less often valid."""
        return cls(
            seed=seed,
            pretraining=FitConfig(steps=600, lr=4e-3),
            alignment=FitConfig(steps=120, lr=1e-3, warmup=0.0, decay=1.0),
            alphas=(-1.0, 0.0, 0.3, 0.6, 1.0, 5.0),
            requests=100,
        )


@dataclass(frozen=True)
class BuiltPair:
    """A finished build.

    Attributes:
        pair: its files.
        scores: counts per α.
        excess: see `excess_nats`.
    """

    pair: BundledPair
    scores: list[PairScore]
    excess: float


def build_pair(out: Path, recipe: PairRecipe, command: str, console: Console | None = None) -> BuiltPair:
    """Train, save, measure and describe a pair in the folder `out`.

    Args:
        out: created if it does not exist; files of an earlier build are replaced.
        recipe: sizes, steps, seed.
        command: the command of the build, for the card.
        console: where progress is drawn; None draws nothing.
    """
    began = time.process_time()
    with _bars(console) as bars:
        tokenizer = train_tokenizer(recipe.seed)
        base = pretrain(tokenizer, recipe.shape, recipe.pretraining, recipe.seed, bars.task("base model"))
        aligned = fine_tune(
            base, tokenizer, config=recipe.alignment, seed=recipe.seed, progress=bars.task("aligned model")
        )
        pair = save(out, tokenizer, base, aligned)
        trained = time.process_time() - began
        scores = measure(pair, recipe, bars)
    facts = CardFacts(
        command=command,
        parameters=base.num_parameters(),
        recipe=asdict(recipe),
        training_seconds=trained,
        excess=excess_nats(_load(pair.base), tokenizer),
        scores=scores,
        checks=pair_checks(scores),
    )
    write_card(pair.card, facts)
    (out / "scores.json").write_text(
        json.dumps({"seed": recipe.seed, "scores": [s.to_dict() for s in scores]}, indent=1) + "\n",
        encoding="utf-8",
    )
    return BuiltPair(pair, scores, facts.excess)


def save(
    out: Path, tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM, aligned: LlamaForCausalLM
) -> BundledPair:
    """Write both checkpoints (bfloat16 safetensors), the template of the base and the held-out prompts."""
    pair = BundledPair.at(out)
    tokenizer.chat_template = None
    _save_model(pair.base, base)
    tokenizer.save_pretrained(pair.base)
    _save_model(pair.aligned, aligned)
    with_chat_template(tokenizer).save_pretrained(pair.aligned)
    pair.base_template.write_text(corpus.BASE_TEMPLATE, encoding="utf-8")
    lines = (
        json.dumps({"prompt": r.text, "category": r.mood})
        for r in corpus.held_out_requests()[: corpus.BUNDLED_PROMPTS]
    )
    pair.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return pair


def _save_model(folder: Path, model: LlamaForCausalLM) -> None:
    saved = LlamaForCausalLM(model.config).to(torch.bfloat16)
    saved.load_state_dict(model.state_dict())
    saved.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    saved.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes its files readable for the owner only


def _load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def sampler_for(pair: BundledPair) -> Sampler:
    """A sampler over a pair of the toy language, in float32, with the formats that it was trained with."""
    return Sampler(
        ModelPair.load(pair.base, pair.aligned, dtype="float32"), base_template=corpus.BASE_TEMPLATE
    )


def measure(pair: BundledPair, recipe: PairRecipe, bars: _Bars) -> list[PairScore]:
    """Score the saved pair at the recipe's α's on held-out requests."""
    report = bars.task("measuring")
    requests = corpus.held_out_requests()[: recipe.requests]
    return score_pair(
        sampler_for(pair),
        recipe.alphas,
        requests,
        recipe.seed,
        lambda done, total: report(done, total, math.nan),
    )


@torch.no_grad()
def excess_nats(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, replies: int = 1000) -> float:
    """Mean of log p_language − log p_base over replies of the language, nats: how far the base is from the language.

    A Monte Carlo estimate, on held-out requests, of the Kullback-Leibler divergence per reply. Probability that the
    base gives to other token sequences of the same text counts as lost.
    """
    encode, rng, total = Encoder(tokenizer), random.Random(1), 0.0
    requests = corpus.held_out_requests()
    drawn = (corpus.Exchange(r, language.sample_reply(r, rng)) for r in islice(cycle(requests), replies))
    with single_thread():
        while batch := list(islice(drawn, 50)):
            ids, labels = collate([encode.base_exchange(e) for e in batch], int(base.config.pad_token_id))
            log_p = base(input_ids=ids).logits[:, :-1].float().log_softmax(-1)  # (B, T-1, V)
            counted = labels[:, 1:] != IGNORED
            total -= float(log_p.gather(-1, ids[:, 1:, None])[..., 0][counted].sum())
            total += sum(language.log_probability(e.reply, e.request) for e in batch)
    return total / replies


class _Bars:
    """Progress bars; a bar appears with the first report of its task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, name: str) -> _Report:
        return _Report(self._progress, name)


class _Report:
    """The callback of one task: (done, total, loss in nats per token)."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int, loss: float) -> None:
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=total, note="")
        note = "" if math.isnan(loss) else f"{loss:.3f} nats per token"
        self._progress.update(self._task, completed=done, note=note)


@contextmanager
def _bars(console: Console | None) -> Iterator[_Bars]:
    columns = (TextColumn("{task.description:14}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(
        *columns, *times, console=console or Console(quiet=True), disable=console is None
    ) as progress:
        yield _Bars(progress)
