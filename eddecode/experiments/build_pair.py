"""Building a pair from nothing: tokenizer, base, aligned model, measurement, card.

Everything follows from the recipe and the seed. Weights are trained in float32 and saved in bfloat16; what is measured
is what was saved, loaded again the way any checkpoint is.
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
from eddecode.experiments.model_card import Facts, write_card
from eddecode.experiments.pair_metrics import Score, checks, score
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
    one_thread,
    pretrain,
)
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.testbed import language as grammar
from eddecode.testbed.bundled import BundledPair


@dataclass(frozen=True)
class Recipe:
    """All that decides a build."""

    seed: int = 0
    shape: ModelShape = field(default_factory=ModelShape)
    pretraining: FitConfig = PRETRAINING
    alignment: FitConfig = ALIGNMENT
    alphas: tuple[float, ...] = (-1.0, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0, 3.0, 5.0)
    requests: int = corpus.HELD_OUT

    @classmethod
    def quick(cls, seed: int = 0) -> Recipe:
        """A smaller pair in about a minute on one core: the same shape, less trained, so less often valid."""
        return cls(
            seed=seed,
            pretraining=FitConfig(steps=600, lr=4e-3),
            alignment=FitConfig(steps=120, lr=1e-3, warmup=0.0, decay=1.0),
            alphas=(-1.0, 0.0, 0.3, 0.6, 1.0, 5.0),
            requests=100,
        )


@dataclass(frozen=True)
class Built:
    """A finished build: where it lies and what it scores."""

    pair: BundledPair
    scores: list[Score]
    excess: float


def build(out: Path, recipe: Recipe, command: str, console: Console | None = None) -> Built:
    """Train, save, measure and describe a pair in the folder `out`.

    Args:
        out: made if need be; files of an earlier build there are replaced.
        recipe: sizes, steps, seed.
        command: how the build was called, for the card.
        console: where the progress goes; none shows nothing.
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
    facts = Facts(
        command=command,
        parameters=base.num_parameters(),
        recipe=asdict(recipe),
        training_seconds=trained,
        excess=excess_nats(_load(pair.base), tokenizer),
        scores=scores,
        checks=checks(scores),
    )
    write_card(pair.card, facts)
    (out / "scores.json").write_text(
        json.dumps({"seed": recipe.seed, "scores": [s.to_dict() for s in scores]}, indent=1) + "\n",
        encoding="utf-8",
    )
    return Built(pair, scores, facts.excess)


def save(
    out: Path, tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM, aligned: LlamaForCausalLM
) -> BundledPair:
    """Write both checkpoints (bfloat16 safetensors), the base's template and the held-out prompts."""
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
        file.chmod(0o644)  # safetensors writes its files for the owner alone; package data is for everyone


def _load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def sampler_for(pair: BundledPair) -> Sampler:
    """A sampler over a pair of the lab, in float32, with the templates that it was trained in."""
    return Sampler(
        ModelPair.load(pair.base, pair.aligned, dtype="float32"), base_template=corpus.BASE_TEMPLATE
    )


def measure(pair: BundledPair, recipe: Recipe, bars: _Bars) -> list[Score]:
    """Score the saved pair at the recipe's α's on held-out requests."""
    report = bars.task("measuring")
    requests = corpus.held_out_requests()[: recipe.requests]
    return score(
        sampler_for(pair),
        recipe.alphas,
        requests,
        recipe.seed,
        lambda done, total: report(done, total, math.nan),
    )


@torch.no_grad()
def excess_nats(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, replies: int = 1000) -> float:
    """How far the base is from the world: the mean of log p_world − log p_base over the world's replies, nats.

    A Monte Carlo estimate, on held-out requests, of the Kullback-Leibler divergence per reply. It counts the
    probability that the base gives to other spellings of a reply (other token sequences) as lost.
    """
    encode, rng, total = Encoder(tokenizer), random.Random(1), 0.0
    requests = corpus.held_out_requests()
    drawn = (corpus.Exchange(r, grammar.sample_reply(r, rng)) for r in islice(cycle(requests), replies))
    with one_thread():
        while batch := list(islice(drawn, 50)):
            ids, labels = collate([encode.base_exchange(e) for e in batch], int(base.config.pad_token_id))
            log_p = base(input_ids=ids).logits[:, :-1].float().log_softmax(-1)  # (B, T-1, V)
            counted = labels[:, 1:] != IGNORED
            total -= float(log_p.gather(-1, ids[:, 1:, None])[..., 0][counted].sum())
            total += sum(grammar.log_probability(e.reply, e.request) for e in batch)
    return total / replies


class _Bars:
    """Progress bars that appear when their task first reports."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, name: str) -> _Report:
        return _Report(self._progress, name)


class _Report:
    """Callable as training and scoring report: (done, total, loss in nats per token)."""

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
